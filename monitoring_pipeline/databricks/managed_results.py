"""Copies the results of managed scorers from the archive into the tables of results and the ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from mlflow.tracing.constant import AssessmentMetadataKey

from monitoring_pipeline.analysis.verdicts import as_score
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.scoring.coverage import ledger, trace_states
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import INVALID_VALUE, MESSAGE_CHARACTERS, SCORER_ERROR, assessment_id
from monitoring_pipeline.scoring.states import Change, ScorerState, Standing
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, SCORER_COVERAGE
from monitoring_pipeline.traces.parts import ASSESSED_AT
from monitoring_pipeline.windows import HOUR, Window

# A trace is scored within 60 minutes (a setting), results take up to 20 minutes, and their archival 15 more.
SETTLED = timedelta(hours=2)


@dataclass(frozen=True)
class TakenResults:
    """The number of results found in the archive, and how many were added or updated in `assessments`."""

    found: int = 0
    written: int = 0


def take_results(
    lake: LakeResource, scorer: ConfiguredScorer, changes: list[Change], window: Window, dagster_run_id: str
) -> TakenResults:
    """Copy the scorer's assessments on the archived traces of `window` into the table `assessments`.

    A result is feedback with the scorer's name, from no human and not written by this pipeline, created while the
    scorer's digest was registered according to `changes`. The latest result of a trace counts.
    """
    taken = TakenResults()
    for day in window.by_day():  # so that only one day's results are in memory
        found = _found(lake, scorer.name, day).to_pylist()
        rows = [row for given in found if (row := _row(scorer, given, changes, dagster_run_id))]
        written = lake.upsert(ASSESSMENTS, from_dicts(ASSESSMENTS, rows))
        taken = TakenResults(taken.found + len({row["trace_id"] for row in rows}), taken.written + written)
    return taken


def _found(lake: LakeResource, name: str, window: Window) -> Any:
    """All feedback with that name not given by a human, oldest first."""
    from pyspark.sql import functions as F

    fields = ("assessment_id", "value", "source_type", "rationale", "error_code", "error_message", "metadata")
    given = lake.read(AGENT_TRACES, window).select(
        "trace_id", "trace_hour", "experiment_id", F.explode("assessments").alias("given")
    )
    of_scorer = (F.col("given.name") == name) & (F.col("given.kind") == "feedback")
    made_at = F.coalesce("given.last_update_time", "given.create_time").alias("made_at")
    return (
        given.where(of_scorer & (F.col("given.source_type") != "HUMAN"))
        .select("trace_id", "trace_hour", "experiment_id", made_at, *(F.col(f"given.{name}") for name in fields))
        .orderBy("made_at", "assessment_id")
        .toArrow()
    )


def _row(
    scorer: ConfiguredScorer, given: dict[str, Any], changes: list[Change], dagster_run_id: str
) -> dict[str, Any] | None:
    metadata = dict(given["metadata"] or {})
    if ASSESSED_AT in metadata or given["made_at"] is None or not _was_made_by(scorer, changes, given["made_at"]):
        return None
    value, error_code, error_message = _judged(given)
    if value is None and error_code is None:
        return None
    input_tokens, output_tokens, cost_usd = (
        _number(metadata.get(key))
        for key in (
            AssessmentMetadataKey.JUDGE_INPUT_TOKENS,
            AssessmentMetadataKey.JUDGE_OUTPUT_TOKENS,
            AssessmentMetadataKey.JUDGE_COST,
        )
    )
    return {
        "trace_id": given["trace_id"],
        "trace_hour": given["trace_hour"],
        "experiment_id": given["experiment_id"],
        "scorer": scorer.name,
        "scorer_digest": scorer.digest,
        "scorer_version": scorer.version,
        "value": None if error_code else json.dumps(value),
        "score": None if error_code else as_score(value),
        "rationale": given["rationale"],
        "error_code": error_code,
        "error_message": error_message,
        "source_type": given["source_type"],
        "sample_rate": scorer.sample_rate,
        "assessed_at": given["made_at"],
        "input_tokens": None if input_tokens is None else int(input_tokens),
        "output_tokens": None if output_tokens is None else int(output_tokens),
        "cost_usd": cost_usd,
        "assessment_id": assessment_id(given["trace_id"], scorer),
        "dagster_run_id": dagster_run_id,
    }


def _judged(given: dict[str, Any]) -> tuple[Any, str | None, str | None]:
    """The value, or the error's code and message instead."""
    if given["error_code"] or given["error_message"]:
        return None, given["error_code"] or SCORER_ERROR, (given["error_message"] or "")[:MESSAGE_CHARACTERS]
    try:
        value = json.loads(given["value"] or "null")
        json.dumps(value, allow_nan=False)
        as_score(value)
    except (ValueError, OverflowError, RecursionError) as error:
        return None, INVALID_VALUE, f"the value cannot be stored: {error}"[:MESSAGE_CHARACTERS]
    return value, None, None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        number = math.nan
    return number if math.isfinite(number) else None


def update_managed_ledger(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    changes: list[Change],
    window: Window,
    backfilled: Collection[str] = (),
) -> int:
    """Update the ledger of `window` for a managed scorer; returns the number of its rows.

    Databricks draws the sample. A trace that matches the filter and has no result is `pending` until Databricks has
    seen it, then `unsampled`: after a backfill of its experiment (`backfilled` has the experiment ids; traces marked by
    earlier backfills stay marked), or two hours after the trace's hour if the scorer was active all that time. A later
    result still counts.
    """
    recorded = _recorded_unsampled(lake, scorer, window)
    states = trace_states(lake, replace(scorer, sample_rate=1.0), window, lake.version(AGENT_TRACES))
    lines = ledger(states, scorer, over_budget=False).toArrow().to_pylist()
    for line in lines:
        waiting = line["pending"]
        if line["experiment_id"] in backfilled or _is_settled(scorer, changes, line["hour"]):
            unsampled = waiting
        else:
            unsampled = min(waiting, recorded.get((line["hour"], line["experiment_id"]), 0))
        line |= {
            "unsampled": unsampled,
            "pending": waiting - unsampled,
            "eligible": line["eligible"] - unsampled,
        }
    lake.upsert(SCORER_COVERAGE, from_dicts(SCORER_COVERAGE, lines))
    return len(lines)


def _recorded_unsampled(
    lake: LakeResource, scorer: ConfiguredScorer, window: Window
) -> dict[tuple[datetime, str | None], int]:
    columns = ("hour", "experiment_id", "scorer", "scorer_digest", "unsampled")
    return {
        (line["hour"], line["experiment_id"]): line["unsampled"]
        for line in lake.read_columns(SCORER_COVERAGE, window, *columns).to_pylist()
        if (line["scorer"], line["scorer_digest"]) == (scorer.name, scorer.digest)
    }


def _is_settled(scorer: ConfiguredScorer, changes: list[Change], hour: datetime) -> bool:
    """Whether Databricks ran the scorer from the hour's start until `SETTLED` after its end, and that time is past."""
    end = hour + HOUR + SETTLED
    meanwhile = [standing for since, until, standing in _periods(changes) if since < end and until > hour]
    started = [since for since, until, _ in _periods(changes) if since <= hour < until]
    ran = all(standing.state is ScorerState.ACTIVE and standing.digest == scorer.digest for standing in meanwhile)
    return bool(started) and ran and end <= datetime.now(UTC)


def _was_made_by(scorer: ConfiguredScorer, changes: list[Change], moment: datetime) -> bool:
    """Whether the scorer's digest was registered at the moment."""
    return any(
        since <= moment < until and standing.digest == scorer.digest and standing.state is not ScorerState.UNREGISTERED
        for since, until, standing in _periods(changes)
    )


def _periods(changes: list[Change]) -> list[tuple[datetime, datetime, Standing]]:
    """The applied standings with their start and end, in order."""
    applied = [change for change in changes if change.applied]
    ends = [*(change.changed_at for change in applied), datetime.max.replace(tzinfo=UTC)][1:]
    return [(change.changed_at, end, change.standing) for change, end in zip(applied, ends, strict=True)]
