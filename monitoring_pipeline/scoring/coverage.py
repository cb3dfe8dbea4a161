"""The ledger of a scorer: what became of every archived trace."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.sampling import drawn
from monitoring_pipeline.scoring.sessions import session_heads
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE
from monitoring_pipeline.traces.filters import matches
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


SEEN = "session_traces"
SPENT = ("input_tokens", "output_tokens", "cost_usd")


def trace_states(lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int) -> DataFrame:
    """What each trace archived in `window` (at `version` of the archive) is to the scorer.

    Columns trace_id, trace_hour, experiment_id, state, quiet and due. `state` is the first of these that holds:
    `scored` or `failed` (a row in assessments for this digest), `not_applicable`, `filtered_out`, `unsampled`, else
    `pending`. A result counts even where the rate or the filter has since become narrower, or a late trace has become
    its session's first, so the ledger always adds up. `quiet` says whether the trace may be scored now: for a scorer of
    sessions it is the first of a session that is quiet. `due` are those of them that are pending, or whose session has
    gone on since it was scored. To such a scorer all traces but a session's first are `filtered_out`. Besides:
    active_until_ms (when the session's last trace ended, in milliseconds since 1970; null without sessions), and
    input_tokens, output_tokens and cost_usd of the result, where there is one.
    """
    from pyspark.sql import functions as F

    traces = lake.read(AGENT_TRACES, window, version).select(
        "trace_id",
        "trace_hour",
        "experiment_id",
        matches(scorer.filter).alias("passes"),
        drawn(scorer.name, scorer.sample_rate).alias("drawn"),
    )
    result = F.when(F.col("error_code").isNull(), "scored").otherwise("failed").alias("result")
    results = lake.read(ASSESSMENTS, window).where(is_of(scorer)).select("trace_id", result, SEEN, *SPENT)
    declined = (
        lake.read(NOT_APPLICABLE, window)
        .where(is_of(scorer))
        .select("trace_id", F.lit(True).alias("declined"), F.col(SEEN).alias("seen_declined"))
    )
    if scorer.session_idle is None:
        traces = traces.withColumns(
            {
                "represents": F.lit(True),
                "quiet": F.lit(True),
                "length": F.lit(None).cast("long"),
                "active_until_ms": F.lit(None).cast("long"),
            }
        )
    else:
        traces = traces.join(session_heads(lake, scorer.session_idle, window, version), "trace_id", "left")
    state = (
        F.when(F.col("result").isNotNull(), F.col("result"))
        .when(F.col("declined"), "not_applicable")
        .when(F.col("represents").isNull() | ~F.col("passes"), "filtered_out")
        .when(~F.col("drawn"), "unsampled")
        .otherwise("pending")
    )
    # The last look may have been the one that declined. More, not other: a run beside this one may know more traces.
    has_gone_on = F.coalesce(F.col("length") > F.greatest(SEEN, "seen_declined"), F.lit(False))
    is_wanted = F.col("passes") & F.col("drawn")
    return (
        traces.join(results, "trace_id", "left")
        .join(declined, "trace_id", "left")
        .withColumn("state", state)
        .withColumn("quiet", F.coalesce("quiet", F.lit(False)))
        .withColumn("due", F.col("quiet") & ((F.col("state") == "pending") | (has_gone_on & is_wanted)))
        .select("trace_id", "trace_hour", "experiment_id", "state", "quiet", "due", "active_until_ms", *SPENT)
    )


def ledger(states: DataFrame, scorer: ConfiguredScorer, over_budget: bool) -> DataFrame:
    """`trace_states` summed up by hour and experiment, columns of the table `scorer_coverage`.

    With `over_budget`, what is still due counts as that, else as pending.
    """
    from pyspark.sql import functions as F

    def count(*names: str) -> Column:
        return F.sum(F.col("state").isin(*names).cast("long"))

    left = F.sum(((F.col("state") == "pending") & F.col("due")).cast("long")) if over_budget else F.lit(0).cast("long")

    return (
        states.groupBy(F.col("trace_hour").alias("hour"), "experiment_id")
        .agg(
            F.count("*").alias("archived"),
            count("filtered_out", "not_applicable").alias("filtered_out"),
            count("unsampled").alias("unsampled"),
            count("scored", "failed", "pending").alias("eligible"),
            count("scored").alias("scored"),
            count("failed").alias("failed"),
            left.alias("over_budget"),
            (count("pending") - left).alias("pending"),
            count("not_applicable").alias("not_applicable"),
        )
        .withColumns({"scorer": F.lit(scorer.name), "scorer_digest": F.lit(scorer.digest)})
    )


def update_ledger(
    lake: LakeResource, scorers: list[ConfiguredScorer], window: Window, over_budget: bool | None = None
) -> int:
    """Bring the ledger of `window` up to date for the scorers' current digests; returns the number of its rows.

    The lines of other scorers and digests stay as they are. `over_budget` says of a scorer's run whether it left the
    rest because its budget was used up; without it the rest stays what that run made it.
    """
    version = lake.version(AGENT_TRACES)
    count = 0
    for scorer in scorers:
        states = trace_states(lake, scorer, window, version)
        lines = ledger(states, scorer, bool(over_budget)).toArrow()
        if over_budget is None:
            left = _left_over_budget(lake, scorer, window, lines)
            lines = lines.set_column(lines.column_names.index("over_budget"), "over_budget", left)
            waiting = pc.subtract(lines["pending"], left)
            lines = lines.set_column(lines.column_names.index("pending"), "pending", waiting)
        lake.upsert(SCORER_COVERAGE, lines)
        count += lines.num_rows
    return count


def waiting_hours(lake: LakeResource, scorer: ConfiguredScorer, window: Window) -> list[datetime]:
    """The hours of `window` in which traces wait for the scorer, by the ledger as it is."""
    lines = lake.read_columns(SCORER_COVERAGE, window, "hour", "scorer", "scorer_digest", "pending", "over_budget")
    ours = (pc.field("scorer") == scorer.name) & (pc.field("scorer_digest") == scorer.digest)
    return lines.filter(ours & (pc.field("pending") + pc.field("over_budget") > 0))["hour"].to_pylist()


def _left_over_budget(lake: LakeResource, scorer: ConfiguredScorer, window: Window, lines: pa.Table) -> pa.Array:
    """How many of the traces that wait the scorer's last run left because its budget was used up, line by line."""
    columns = ("hour", "experiment_id", "scorer", "scorer_digest", "over_budget")
    recorded = {
        (row["hour"], row["experiment_id"]): row["over_budget"]
        for row in lake.read_columns(SCORER_COVERAGE, window, *columns).to_pylist()
        if (row["scorer"], row["scorer_digest"]) == (scorer.name, scorer.digest)
    }
    keys = lines.select(["hour", "experiment_id", "pending"]).to_pylist()
    return pa.array(
        [min(recorded.get((line["hour"], line["experiment_id"]), 0), line["pending"]) for line in keys], pa.int64()
    )


def ledger_problems(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> list[str]:
    """Where the ledger of `window` does not add up, or not with the archive and the assessments; empty when it does."""
    from pyspark.sql import functions as F

    lines = lake.read(SCORER_COVERAGE, window).toArrow().to_pylist()
    problems = [_line(line) for line in lines if not _adds_up(line)]
    archived = _counts(lake.read(AGENT_TRACES, window), F.count("*"))
    failed = F.col("error_code").isNotNull().cast("long")
    for scorer in scorers:
        recorded = {
            (line["hour"], line["experiment_id"]): (line["archived"], line["scored"], line["failed"])
            for line in lines
            if (line["scorer"], line["scorer_digest"]) == (scorer.name, scorer.digest)
        }
        results = _counts(lake.read(ASSESSMENTS, window).where(is_of(scorer)), F.sum(1 - failed), F.sum(failed))
        for hour, experiment_id in sorted({*recorded, *archived, *results}, key=str):
            key = (hour, experiment_id)
            found = (*archived.get(key, (0,)), *results.get(key, (0, 0)))
            if recorded.get(key, (0, 0, 0)) != found:
                problems.append(
                    f"{hour:%Y-%m-%d %H:%M} {scorer.name} {scorer.digest}: archived, scored, failed "
                    f"{recorded.get(key, 'without a line')} in the ledger, {found} in the lake"
                )
    return problems


def is_of(scorer: ConfiguredScorer) -> Column:
    """The condition that a row of assessments, coverage or quality belongs to the scorer's current digest."""
    from pyspark.sql import functions as F

    return (F.col("scorer") == scorer.name) & (F.col("scorer_digest") == scorer.digest)


def results_by_hour(results: DataFrame) -> DataFrame:
    """Rows of `assessments` counted by trace_hour: rows, scored, failed and mean_score."""
    from pyspark.sql import functions as F

    return results.groupBy("trace_hour").agg(
        F.count("*").alias("rows"),
        F.sum(F.col("error_code").isNull().cast("int")).alias("scored"),
        F.sum(F.col("error_code").isNotNull().cast("int")).alias("failed"),
        F.avg("score").alias("mean_score"),
    )


def coverage_by_hour(lines: DataFrame, scorers: Iterable[ConfiguredScorer]) -> DataFrame:
    """The lines of the scorers' current digests by hour: rows, and the sums of eligible and of its parts."""
    from pyspark.sql import functions as F

    sums = (F.sum(name).alias(name) for name in ("eligible", "scored", "failed", "over_budget", "pending"))
    current = F.col("scorer_digest").isin(*(scorer.digest for scorer in scorers))
    return lines.where(current).groupBy("hour").agg(F.count("*").alias("rows"), *sums)


def _counts(rows: DataFrame, *counts: Column) -> dict[tuple[datetime, str | None], tuple[int, ...]]:
    """The counts of each hour and experiment."""
    found = rows.groupBy("trace_hour", "experiment_id").agg(*counts).toArrow()  # with the zone of its times
    values = (tuple(row.values()) for row in found.to_pylist())
    return {(hour, experiment_id): tuple(numbers) for hour, experiment_id, *numbers in values}


def _adds_up(line: dict[str, Any]) -> bool:
    return (
        line["archived"] == line["eligible"] + line["filtered_out"] + line["unsampled"]
        and line["eligible"] == line["scored"] + line["failed"] + line["over_budget"] + line["pending"]
    )


def _line(line: dict[str, Any]) -> str:
    parts = ("eligible", "filtered_out", "unsampled", "scored", "failed", "over_budget", "pending")
    counts = ", ".join(f"{name} {line[name]}" for name in parts)
    of = f"{line['hour']:%Y-%m-%d %H:%M} {line['scorer']} {line['scorer_digest']}"
    return f"{of}: archived {line['archived']}, but {counts}"
