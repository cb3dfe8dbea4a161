"""The coverage ledger of a scorer: the state of every archived trace."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.sampling import drawn
from monitoring_pipeline.scoring.sessions import session_heads, trace_facts
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE
from monitoring_pipeline.traces.filters import matches
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


SEEN = "session_traces"
SPENT = ("input_tokens", "output_tokens", "cost_usd")
OF_CONTENT = ("active_until_ms", "content_digest", "unfinished")


def trace_states(lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int) -> DataFrame:
    """The scorer's state for each trace archived in `window`, at `version` of the archive.

    Columns trace_id, trace_hour, experiment_id, state, quiet and due. `state` is the first of these that applies:
    `scored` or `failed` (a row in assessments for this digest), `not_applicable`, `filtered_out`, `unsampled`, else
    `pending`. A result counts even if the sample rate or the filter has been narrowed since, or a late trace has become
    its session's first, so the ledger always adds up. `quiet`: the trace may be scored now, as it has ended or been
    silent for long enough; for a session scorer it is the first of a quiet session. `due`: a quiet trace that is
    pending, or whose content has changed since it was scored. For a session scorer all traces but a session's first are
    `filtered_out`. Further columns: active_until_ms (end of the session's last trace, in milliseconds since 1970; null
    without sessions), content_digest (of what the scorer reads), unfinished (whether a trace has not ended), and
    input_tokens, output_tokens and cost_usd of the result, if any.
    """
    from pyspark.sql import functions as F

    archived = lake.read(AGENT_TRACES, window, version)
    facts = trace_facts(scorer) if scorer.session_idle is None else {}  # of a session, `session_heads` has them
    traces = archived.select(
        "trace_id",
        "trace_hour",
        "experiment_id",
        matches(scorer.filter).alias("passes"),
        drawn(scorer.name, scorer.sample_rate).alias("drawn"),
        *(column.alias(name) for name, column in facts.items()),
    )
    result = F.when(F.col("error_code").isNull(), "scored").otherwise("failed").alias("result")
    of_content = F.col("content_digest")
    results = (
        lake.read(ASSESSMENTS, window)
        .where(is_of(scorer))
        .select("trace_id", result, SEEN, of_content.alias("scored_digest"), *SPENT)
    )
    declined = (
        lake.read(NOT_APPLICABLE, window)
        .where(is_of(scorer))
        .select(
            "trace_id",
            F.lit(True).alias("declined"),
            F.col(SEEN).alias("seen_declined"),
            of_content.alias("declined_digest"),
        )
    )
    if scorer.session_idle is None:
        nothing = F.lit(None).cast("long")
        traces = traces.withColumns({"represents": F.lit(True), "length": nothing, "active_until_ms": nothing})
    else:
        traces = traces.join(session_heads(lake, scorer, window, version), "trace_id", "left")
    state = (
        F.when(F.col("result").isNotNull(), F.col("result"))
        .when(F.col("declined"), "not_applicable")
        .when(F.col("represents").isNull() | ~F.col("passes"), "filtered_out")
        .when(~F.col("drawn"), "unsampled")
        .otherwise("pending")
    )
    # Less than zero where a concurrent run has seen more traces of the session than this version has.
    new_traces = F.coalesce(F.col("length") - F.greatest(SEEN, "seen_declined"), F.lit(0))
    # A result without a digest was made by an earlier version; nothing tells whether its trace has changed.
    is_known = F.coalesce("scored_digest", "declined_digest").isNotNull() & F.col("content_digest").isNotNull()
    has_changed = (
        is_known
        & ~F.col("content_digest").eqNullSafe(F.col("scored_digest"))
        & ~F.col("content_digest").eqNullSafe(F.col("declined_digest"))
    )
    is_stale = ((new_traces > 0) | (has_changed & (new_traces == 0))) & F.col("passes") & F.col("drawn")
    return (
        traces.join(results, "trace_id", "left")
        .join(declined, "trace_id", "left")
        .withColumn("state", state)
        .withColumn("quiet", F.coalesce("quiet", F.lit(False)))
        .withColumn("unfinished", F.coalesce("unfinished", F.lit(False)))
        .withColumn("due", F.col("quiet") & ((F.col("state") == "pending") | is_stale))
        .select("trace_id", "trace_hour", "experiment_id", "state", "quiet", "due", *OF_CONTENT, *SPENT)
    )


def ledger(states: DataFrame, scorer: ConfiguredScorer, over_budget: bool) -> DataFrame:
    """`trace_states` counted by hour and experiment, with the columns of the table `scorer_coverage`.

    With `over_budget`, traces still due count as over_budget, else as pending.
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
            F.sum(((F.col("state") != "pending") & F.col("due")).cast("long")).alias("stale"),
        )
        .withColumns({"scorer": F.lit(scorer.name), "scorer_digest": F.lit(scorer.digest)})
    )


def update_ledger(
    lake: LakeResource, scorers: list[ConfiguredScorer], window: Window, over_budget: bool | None = None
) -> int:
    """Update the ledger of `window` for the scorers' current digests; returns the number of updated rows.

    Rows of other scorers and digests are not changed. `over_budget`: whether the scorer's run left traces unscored
    because its budget was used up; None keeps the split into over_budget and pending that the last run recorded.
    Rows of hours that no longer have a trace, because all have moved to another hour, get counts of zero.
    """
    version = lake.version(AGENT_TRACES)
    count = 0
    for scorer in scorers:
        states = trace_states(lake, scorer, window, version)
        lines = ledger(states, scorer, bool(over_budget)).toArrow()
        lines = pa.concat_tables([lines, _emptied(lake, scorer, window, lines)], promote_options="permissive")
        if over_budget is None:
            left = _left_over_budget(lake, scorer, window, lines)
            lines = lines.set_column(lines.column_names.index("over_budget"), "over_budget", left)
            waiting = pc.subtract(lines["pending"], left)
            lines = lines.set_column(lines.column_names.index("pending"), "pending", waiting)
        lake.upsert(SCORER_COVERAGE, lines)
        count += lines.num_rows
    return count


def waiting_hours(lake: LakeResource, scorer: ConfiguredScorer, window: Window) -> list[datetime]:
    """Hours of `window` in which traces wait for the scorer, according to the current ledger."""
    lines = lake.read_columns(SCORER_COVERAGE, window, "hour", "scorer", "scorer_digest", "pending", "over_budget")
    ours = (pc.field("scorer") == scorer.name) & (pc.field("scorer_digest") == scorer.digest)
    return lines.filter(ours & (pc.field("pending") + pc.field("over_budget") > 0))["hour"].to_pylist()


def _emptied(lake: LakeResource, scorer: ConfiguredScorer, window: Window, lines: pa.Table) -> pa.Table:
    """Rows of zeros for the hours and experiments that the recorded ledger has, but not `lines`."""
    key = ("hour", "experiment_id")
    recorded = lake.read_columns(SCORER_COVERAGE, window, *key, "scorer", "scorer_digest", "archived").to_pylist()
    present = {tuple(line.values()) for line in lines.select(key).to_pylist()}
    empty = [
        {name: row[name] for name in SCORER_COVERAGE.key} | dict.fromkeys(SCORER_COVERAGE.content, 0)
        for row in recorded
        if (row["scorer"], row["scorer_digest"]) == (scorer.name, scorer.digest)
        and row["archived"]
        and (row["hour"], row["experiment_id"]) not in present
    ]
    return from_dicts(SCORER_COVERAGE, empty).select(lines.column_names)


def _left_over_budget(lake: LakeResource, scorer: ConfiguredScorer, window: Window, lines: pa.Table) -> pa.Array:
    """For each row of `lines`, how many waiting traces the scorer's last run left because its budget was used up."""
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
    """Messages on rows of the ledger of `window` that do not add up or do not match the archive and the assessments."""
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
                    f"{recorded.get(key, 'no row')} in the ledger, {found} in the lake"
                )
    return problems


def is_of(scorer: ConfiguredScorer) -> Column:
    """The condition that a row of assessments, coverage or quality belongs to the scorer's current digest."""
    from pyspark.sql import functions as F

    return (F.col("scorer") == scorer.name) & (F.col("scorer_digest") == scorer.digest)


def results_by_hour(results: DataFrame) -> DataFrame:
    """Rows of `assessments` aggregated by trace_hour: rows, scored, failed and mean_score."""
    from pyspark.sql import functions as F

    return results.groupBy("trace_hour").agg(
        F.count("*").alias("rows"),
        F.sum(F.col("error_code").isNull().cast("int")).alias("scored"),
        F.sum(F.col("error_code").isNotNull().cast("int")).alias("failed"),
        F.avg("score").alias("mean_score"),
    )


def coverage_by_hour(lines: DataFrame, scorers: Iterable[ConfiguredScorer]) -> DataFrame:
    """Ledger rows of the scorers' current digests by hour: rows, and the sums of eligible and of its parts."""
    from pyspark.sql import functions as F

    sums = (F.sum(name).alias(name) for name in ("eligible", "scored", "failed", "over_budget", "pending"))
    current = F.col("scorer_digest").isin(*(scorer.digest for scorer in scorers))
    return lines.where(current).groupBy("hour").agg(F.count("*").alias("rows"), *sums)


def _counts(rows: DataFrame, *counts: Column) -> dict[tuple[datetime, str | None], tuple[int, ...]]:
    """`counts` by hour and experiment."""
    found = rows.groupBy("trace_hour", "experiment_id").agg(*counts).toArrow()  # Arrow keeps the time zone
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
