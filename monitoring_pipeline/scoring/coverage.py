"""The ledger of a scorer: what became of every archived trace."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.sampling import drawn
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE
from monitoring_pipeline.traces.filters import matches
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def trace_states(lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int) -> DataFrame:
    """What each trace archived in `window` (at `version` of the archive) is to the scorer.

    Columns trace_id, trace_hour, experiment_id and state, the first of these that holds: `scored` or `failed` (a row in
    assessments for this digest), `not_applicable`, `filtered_out`, `unsampled`, else `pending`. A result counts even
    where the rate or the filter has since become narrower, so the ledger always adds up.
    """
    from pyspark.sql import functions as F

    traces = lake.read(AGENT_TRACES, window, version).select(
        "trace_id",
        "trace_hour",
        "experiment_id",
        matches(scorer.filter).alias("passes"),
        drawn(scorer.name, scorer.sample_rate).alias("drawn"),
    )
    results = (
        lake.read(ASSESSMENTS, window)
        .where(is_of(scorer))
        .select("trace_id", F.when(F.col("error_code").isNull(), "scored").otherwise("failed").alias("result"))
    )
    declined = lake.read(NOT_APPLICABLE, window).where(is_of(scorer)).select("trace_id", F.lit(True).alias("declined"))
    state = (
        F.when(F.col("result").isNotNull(), F.col("result"))
        .when(F.col("declined"), "not_applicable")
        .when(~F.col("passes"), "filtered_out")
        .when(~F.col("drawn"), "unsampled")
        .otherwise("pending")
    )
    return (
        traces.join(results, "trace_id", "left")
        .join(declined, "trace_id", "left")
        .select("trace_id", "trace_hour", "experiment_id", state.alias("state"))
    )


def ledger(states: DataFrame, scorer: ConfiguredScorer) -> DataFrame:
    """`trace_states` summed up by hour and experiment, columns of the table `scorer_coverage`."""
    from pyspark.sql import functions as F

    def count(*names: str) -> Column:
        return F.sum(F.col("state").isin(*names).cast("long"))

    return (
        states.groupBy(F.col("trace_hour").alias("hour"), "experiment_id")
        .agg(
            F.count("*").alias("archived"),
            count("filtered_out", "not_applicable").alias("filtered_out"),
            count("unsampled").alias("unsampled"),
            count("scored", "failed", "pending").alias("eligible"),
            count("scored").alias("scored"),
            count("failed").alias("failed"),
            F.lit(0).cast("long").alias("over_budget"),
            count("pending").alias("pending"),
            count("not_applicable").alias("not_applicable"),
        )
        .withColumns({"scorer": F.lit(scorer.name), "scorer_digest": F.lit(scorer.digest)})
    )


def update_ledger(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> int:
    """Bring the ledger of `window` up to date for the scorers' current digests; returns the number of its rows.

    The lines of other scorers and digests stay as they are.
    """
    version = lake.version(AGENT_TRACES)
    lines = [ledger(trace_states(lake, scorer, window, version), scorer).toArrow() for scorer in scorers]
    for line in lines:
        lake.upsert(SCORER_COVERAGE, line)
    return sum(line.num_rows for line in lines)


def ledger_problems(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> list[str]:
    """Where the ledger of `window` does not add up, or not with the archive and the assessments; empty when it does."""
    from pyspark.sql import functions as F

    lines = lake.read(SCORER_COVERAGE, window).collect()
    problems = [_line(line) for line in lines if not _adds_up(line)]
    archived = _counts(lake.read(AGENT_TRACES, window), F.count("*"))
    failed = F.col("error_code").isNotNull().cast("long")
    for scorer in scorers:
        told = {
            (line.hour, line.experiment_id): (line.archived, line.scored, line.failed)
            for line in lines
            if (line.scorer, line.scorer_digest) == (scorer.name, scorer.digest)
        }
        results = _counts(lake.read(ASSESSMENTS, window).where(is_of(scorer)), F.sum(1 - failed), F.sum(failed))
        for hour, experiment_id in sorted({*told, *archived, *results}, key=str):
            key = (hour, experiment_id)
            found = (*archived.get(key, (0,)), *results.get(key, (0, 0)))
            if told.get(key, (0, 0, 0)) != found:
                problems.append(
                    f"{hour:%Y-%m-%d %H:%M} {scorer.name} {scorer.digest}: archived, scored, failed "
                    f"{told.get(key, 'without a line')} in the ledger, {found} in the lake"
                )
    return problems


def is_of(scorer: ConfiguredScorer) -> Column:
    """The condition that a row of assessments, coverage or quality belongs to the scorer's current digest."""
    from pyspark.sql import functions as F

    return (F.col("scorer") == scorer.name) & (F.col("scorer_digest") == scorer.digest)


def _counts(rows: DataFrame, *counts: Column) -> dict[tuple[datetime, str | None], tuple[int, ...]]:
    """The counts of each hour and experiment."""
    return {
        (row[0], row[1]): tuple(row[2:]) for row in rows.groupBy("trace_hour", "experiment_id").agg(*counts).collect()
    }


def _adds_up(line: Any) -> bool:
    return (
        line.archived == line.eligible + line.filtered_out + line.unsampled
        and line.eligible == line.scored + line.failed + line.over_budget + line.pending
    )


def _line(line: Any) -> str:
    parts = ("eligible", "filtered_out", "unsampled", "scored", "failed", "over_budget", "pending")
    counts = ", ".join(f"{name} {getattr(line, name)}" for name in parts)
    return f"{line.hour:%Y-%m-%d %H:%M} {line.scorer} {line.scorer_digest}: archived {line.archived}, but {counts}"
