"""Runs scorers on demand on every chosen trace, without sampling, budgets and ledgers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from mlflow.entities import Trace
from mlflow.genai.scorers import Scorer

from monitoring_pipeline.analysis.verdicts import passes
from monitoring_pipeline.archive.given import MlflowTraces, mlflow_traces
from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.budgets import Purse
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.metering import meter_of
from monitoring_pipeline.scoring.pool import run_all
from monitoring_pipeline.scoring.registry import ConfiguredScorer, configured, load_scorers
from monitoring_pipeline.scoring.runner import PendingTrace
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.filters import matches, parse_filter
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds

COLUMNS = [
    "trace_id",
    "scorer",
    "scorer_digest",
    "value",
    "score",
    "rationale",
    "error_code",
    "error_message",
    "source_type",
    "assessed_at",
    "duration_ms",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "session_id",
]


@dataclass(frozen=True)
class Outcome:
    """Summary of a scorer's results: `n` scores, their mean, pass rate, number of errors and cost.

    `mean` and `pass_rate` are None without a score; `pass_rate` also if the scorer has no `pass_if` and its scores are
    not all 0 or 1.
    """

    scorer: str
    n: int
    mean: float | None
    pass_rate: float | None
    errors: int
    cost_usd: float | None


def assess_traces(lake: LakeResource, scorers: Sequence[ConfiguredScorer], traces: Iterable[Trace]) -> pd.DataFrame:
    """Run the scorers once on each of `traces`, within the scorers' limits; nothing is written.

    Returns COLUMNS, a row for each trace (or session, by its first trace) and scorer that applies to it.
    """
    found = list({trace.info.trace_id: trace for trace in traces}.values())
    rows: list[dict[str, Any]] = []
    for scorer in scorers:
        unbounded = replace(scorer, budget=Budget(), sample_rate=1.0)
        meter = meter_of(lake.location, scorer.name, scorer.limits)
        pending = _sessions(found) if scorer.session_idle is not None else map(_pending, found)
        results = run_all(unbounded, pending, "", meter, Purse(lake, unbounded))
        rows += [row for row, applies in results if applies]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values(["trace_id", "scorer"], ignore_index=True)


def outcomes(assessed: pd.DataFrame, scorers: Sequence[ConfiguredScorer]) -> list[Outcome]:
    """One `Outcome` per scorer, computed from the result of `assess_traces`."""
    return [_outcome(assessed[assessed["scorer"] == scorer.name], scorer) for scorer in scorers]


def archived_traces(
    lake: LakeResource, window: Window | None, filter: str | None, trace_ids: Sequence[str] | None
) -> list[Trace]:
    """The archived traces of `window` (None: all) that pass the MLflow `filter` and are among `trace_ids`.

    Raises:
        MonitoringError: a trace of `trace_ids` is not in the archive or the window, or does not pass the filter.
    """
    from pyspark.sql import functions as F

    rows = lake.read(AGENT_TRACES, window).select("trace_id", "trace_json", matches(filter).alias("passes"))
    if trace_ids is not None:
        rows = rows.where(F.col("trace_id").isin(*trace_ids))
    found = {row["trace_id"]: row["trace_json"] for row in rows.where("passes").toLocalIterator()}
    if missing := sorted(set(trace_ids or ()) - found.keys()):
        where = f"in the archive of {window}" if window else "in the archive"
        raise MonitoringError(
            f"no trace {', '.join(missing[:5])} {where}; archive its hour first, or pass the trace itself"
        )
    return [Trace.from_json(text) for text in found.values()]


def _outcome(rows: pd.DataFrame, scorer: ConfiguredScorer) -> Outcome:
    scores = rows["score"].dropna().astype(float)
    rate = None
    if len(scores) and (scorer.pass_if or scores.isin([0, 1]).all()):
        rate = float(passes(scores, scorer.pass_if).mean())  # type: ignore[arg-type]
    costs = rows["cost_usd"].dropna()
    return Outcome(
        scorer.name,
        n=len(scores),
        mean=float(scores.mean()) if len(scores) else None,
        pass_rate=rate,
        errors=int(rows["error_code"].notna().sum()),
        cost_usd=float(costs.sum()) if len(costs) else None,
    )


def _pending(trace: Trace) -> PendingTrace:
    return _pending_of([trace], None)


def _pending_of(traces: Sequence[Trace], session_id: str | None) -> PendingTrace:
    info = traces[0].info
    hour = floor_hour(from_milliseconds(info.request_time))
    ids = tuple(trace.info.trace_id for trace in traces) if session_id is not None else ()
    texts = tuple(trace.to_json() for trace in traces)
    return PendingTrace(info.trace_id, hour, info.experiment_id, texts, session_id, ids)


def _sessions(traces: Iterable[Trace]) -> list[PendingTrace]:
    """The sessions of `traces`, with only the given traces; traces without a session are left out."""
    members: defaultdict[tuple[str | None, str], list[Trace]] = defaultdict(list)
    for trace in sorted(traces, key=lambda trace: (trace.info.request_time, trace.info.trace_id)):
        session_id = (trace.info.trace_metadata or {}).get("mlflow.trace.session")
        if session_id:
            members[trace.info.experiment_id, session_id].append(trace)
    return [_pending_of(found, session_id) for (_, session_id), found in members.items()]


RESULTS_FILE = "assessments.json"


@dataclass(frozen=True)
class Assessed:
    """The results (columns of `scoring.on_demand.COLUMNS`), their summaries, and the MLflow run they are logged to."""

    results: pd.DataFrame
    outcomes: list[Outcome]
    run_id: str | None = None


def chosen_scorers(
    settings: Sequence[ScorerSettings], scorers: Sequence[str | Scorer] | None
) -> list[ConfiguredScorer]:
    """The configured scorers with the given names, and the given scorer objects; None selects all configured scorers.

    Raises:
        SettingsError: a name is not configured, a scorer cannot be loaded, or two scorers have the same name.
    """
    known = {entry.name: entry for entry in settings}
    wanted = list(known) if scorers is None else scorers
    names = [item if isinstance(item, str) else item.name for item in wanted]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError([f"more than one scorer is named {', '.join(repeated)}; scorer names must be unique"])
    unknown = [name for name in wanted if isinstance(name, str) and name not in known]
    if unknown:
        raise SettingsError([f"no scorer {', '.join(map(repr, unknown))}; configured are {', '.join(known)}"])
    loaded = {scorer.name: scorer for scorer in load_scorers([known[name] for name in wanted if isinstance(name, str)])}
    return [loaded[item] if isinstance(item, str) else configured(item) for item in wanted]


def chosen_traces(
    lake: LakeResource,
    traces: MlflowTraces | None,
    trace_ids: Sequence[str] | None,
    window: Window | None,
    filter: str | None,
) -> list[Trace]:
    """`traces` (a list, or a table as mlflow.search_traces returns it), else archived traces of `window`.

    Raises:
        MonitoringError: both are given, the filter is not a valid MLflow filter, or a trace does not exist.
    """
    if traces is None:
        try:
            parse_filter(filter) if filter else None
        except ValueError as error:
            raise MonitoringError(str(error)) from error
        return archived_traces(lake, window, filter, trace_ids)
    if trace_ids is not None or window is not None or filter:
        raise MonitoringError(
            "give either traces, or trace_ids, start_time, end_time and filter_string of archived traces"
        )
    return mlflow_traces(traces)


def assess_chosen(
    lake: LakeResource,
    tracking: TrackingResource,
    scorers: Sequence[ConfiguredScorer],
    traces: Sequence[Trace],
    experiment_name: str | None,
) -> Assessed:
    """Run the scorers on the traces; with an experiment, also log summaries and results to a new MLflow run.

    Raises:
        TrackingError: the store or the experiment cannot be used; raised before any scorer runs.
    """
    experiment_id = tracking.experiment_id(experiment_name) if experiment_name else None
    results = assess_traces(lake, scorers, traces)
    figures = outcomes(results, scorers)
    run_id = _log_run(tracking, experiment_id, scorers, results, figures) if experiment_id else None
    return Assessed(results, figures, run_id)


def check_thresholds(fail_under: Mapping[str, float], scorers: Sequence[ConfiguredScorer]) -> None:
    """Reject invalid thresholds before any scorer runs.

    Raises:
        SettingsError: a threshold is not a finite number, or its scorer does not run.
    """
    names = [scorer.name for scorer in scorers]
    if unknown := sorted(set(fail_under) - set(names)):
        raise SettingsError([f"fail-under names {', '.join(unknown)}, but only {', '.join(names)} runs"])
    if unusable := [name for name, threshold in fail_under.items() if not math.isfinite(threshold)]:
        raise SettingsError([f"fail-under of {', '.join(unusable)} must be a finite number"])


def shortfalls(figures: Sequence[Outcome], fail_under: Mapping[str, float]) -> list[str]:
    """A line for each scorer of `fail_under` whose mean score is under its threshold, or that has no score."""
    by_name = {outcome.scorer: outcome for outcome in figures}
    lines = []
    for name, threshold in fail_under.items():
        mean = by_name[name].mean
        if mean is None:
            lines.append(f"{name}: no score to compare with {threshold:g}")
        elif mean < threshold:
            lines.append(f"{name}: mean score {mean:.4f} is under {threshold:g}")
    return lines


def _log_run(
    tracking: TrackingResource,
    experiment_id: str,
    scorers: Sequence[ConfiguredScorer],
    results: pd.DataFrame,
    figures: Sequence[Outcome],
) -> str:
    with tracking.calls() as client:
        run_id = client.create_run(experiment_id, run_name=f"assess {datetime.now(UTC):%Y-%m-%d %H:%M}").info.run_id
        for scorer in scorers:
            client.log_param(run_id, f"{scorer.name}/digest", scorer.digest)
        for outcome in figures:
            values = {"mean": outcome.mean, "pass_rate": outcome.pass_rate, "n": outcome.n, "errors": outcome.errors}
            for metric, value in values.items():
                if value is not None:
                    client.log_metric(run_id, f"{outcome.scorer}/{metric}", value)
        client.log_table(run_id, results.astype({"assessed_at": str}), RESULTS_FILE)
        client.set_terminated(run_id)
    return run_id
