"""Traces and sessions that are due for a scorer, with the parts of them that it reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.builtins import asks_repeatedly, reads_spans, request_count
from monitoring_pipeline.scoring.coverage import OF_CONTENT, SPENT, trace_states, waiting_hours
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import PendingTrace, Spent
from monitoring_pipeline.scoring.sampling import draw
from monitoring_pipeline.scoring.sessions import earlier, text_bytes, whole_sessions
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import HOUR, Window, from_milliseconds, to_milliseconds

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SESSIONS_AT_A_TIME = 500


def pending_traces(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    version: int,
    retry_failed: bool = False,
    newest_first: bool = False,
) -> Iterator[PendingTrace]:
    """Traces and sessions due in `window`, at `version` of the archive, by day or, with `newest_first`, by hour.

    With `retry_failed`, also those whose result is an error. A scorer with a budget gets the traces of a day or hour in
    the order of the sample's hash: if the budget ends, those that were scored are a random sample of a lower rate.
    """
    for rows in pending_rows(lake, scorer, window, version, _parts(window, newest_first), retry_failed):
        ordered = rows if scorer.budget == Budget() else rows.orderBy(draw(scorer.name))
        for row in ordered.toLocalIterator():
            yield pending_trace(row.asDict())


def pending_rows(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    version: int,
    parts: Iterable[Window],
    retry_failed: bool = False,
) -> Iterator[DataFrame]:
    """`pending_traces` as one DataFrame per part of the window; `pending_trace` converts a row."""
    for part, due in _due(lake, scorer, window, version, parts, retry_failed):
        yield due.join(_shown(lake, scorer, due, part, version), "trace_id")


def pending_trace(row: dict[str, Any]) -> PendingTrace:
    """A row of `pending_rows` as a PendingTrace."""
    return PendingTrace(
        row["trace_id"],
        from_milliseconds(row["hour_ms"]),
        row["experiment_id"],
        tuple(row["traces"]),
        row["session_id"],
        tuple(row["session_trace_ids"] or ()),
        row["prompt_bytes"],
        Spent(row["input_tokens"], row["output_tokens"], row["cost_usd"]),
        row["content_digest"],
        row["unfinished"],
    )


@dataclass(frozen=True)
class Workload:
    """The amount of due work: traces or sessions, the judge's requests for them, and the prompt bytes of these."""

    traces: int = 0
    requests: int = 0
    prompt_bytes: int = 0


def workload(
    lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int, retry_failed: bool = False
) -> Workload:
    """Count what `pending_traces` would yield; reads the traces only for a judge that sends one request per part."""
    from pyspark.sql import functions as F

    if asks_repeatedly(scorer.scorer):
        found = [
            (request_count(scorer.scorer, trace.traces), trace.prompt_bytes)
            for trace in pending_traces(lake, scorer, window, version, retry_failed)
        ]
        requests = sum(count for count, _ in found)
        return Workload(len(found), requests, sum(count * size for count, size in found))
    count, size = 0, 0
    for part, due in _due(lake, scorer, window, version, _parts(window, newest_first=False), retry_failed):
        shown = _shown(lake, scorer, due, part, version).join(due.select("trace_id"), "trace_id")
        totals = shown.agg(F.count("*").alias("count"), F.sum("prompt_bytes").alias("size")).collect()[0]
        count, size = count + totals["count"], size + (totals["size"] or 0)
    return Workload(count, count, size)


def _due(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    version: int,
    parts: Iterable[Window],
    retry_failed: bool,
) -> Iterator[tuple[Window, DataFrame]]:
    """Rows of `trace_states` that are due, in pieces, each with a window that covers all of their traces."""
    from pyspark.sql import functions as F

    def due(part: Window) -> DataFrame:
        states = trace_states(lake, scorer, part, version)
        again = F.lit(retry_failed) & F.col("quiet") & (F.col("state") == "failed")
        hour_ms = F.unix_millis("trace_hour").alias("hour_ms")  # a timestamp would lose its time zone on collect
        due_or_again = states.where(F.col("due") | again)
        return due_or_again.select("trace_id", hour_ms, "experiment_id", *OF_CONTENT, *SPENT)

    if scorer.session_idle is None:
        for part in parts:
            yield part, due(part)
        # Also traces of earlier hours that have not ended, and have been silent for long enough by now.
        for part in _waiting_days(lake, scorer, earlier(window)):
            yield part, due(part).where("unfinished")
        return
    for part in parts:
        yield from _sessions_at_a_time(lake, due(part))
    # Also sessions that began earlier and were not yet quiet when the previous hour was scored.
    since_ms = to_milliseconds(window.start - scorer.session_idle - HOUR)
    yield from _sessions_at_a_time(lake, due(earlier(window)).where(F.col("active_until_ms") >= since_ms))


def _waiting_days(lake: LakeResource, scorer: ConfiguredScorer, window: Window) -> Iterator[Window]:
    """The parts of `window`, by day, in which unfinished traces may have become due."""
    settled = datetime.now(UTC) - scorer.unfinished_after
    hours = sorted(hour for hour in waiting_hours(lake, scorer, window) if hour <= settled)
    return (Window.covering([*of_day]) for _, of_day in itertools.groupby(hours, key=datetime.date))


def _sessions_at_a_time(lake: LakeResource, due: DataFrame) -> Iterator[tuple[Window, DataFrame]]:
    """Cut `due` into pieces whose sessions fit in memory, each with a window of only the hours to read."""
    heads = due.orderBy("hour_ms").toArrow()
    for start in range(0, heads.num_rows, SESSIONS_AT_A_TIME):
        some = heads.slice(start, SESSIONS_AT_A_TIME)
        reach_ms = (pc.min(some["hour_ms"]).as_py(), pc.max(some["active_until_ms"]).as_py())
        yield Window.covering([*map(from_milliseconds, reach_ms)]), lake.spark.session.createDataFrame(some)


def _shown(lake: LakeResource, scorer: ConfiguredScorer, due: DataFrame, window: Window, version: int) -> DataFrame:
    """Columns of `whole_sessions`, for at least the traces in `due`; of a single trace, one element and no session."""
    from pyspark.sql import functions as F

    text = ["trace_json"] if scorer.model and reads_spans(scorer.scorer) else ["request", "response"]
    if scorer.session_idle is not None:
        return whole_sessions(lake, due.select("trace_id"), window, version, text)
    return lake.read(AGENT_TRACES, window, version).select(
        "trace_id",
        F.lit(None).cast("string").alias("session_id"),
        F.lit(None).cast("array<string>").alias("session_trace_ids"),
        F.array("trace_json").alias("traces"),
        text_bytes(text).alias("prompt_bytes"),
    )


def _parts(window: Window, newest_first: bool) -> Iterable[Window]:
    # By day, so that a commit touches one folder of files and a large backfill holds one day's ids at a time.
    return reversed([*window.by_hour()]) if newest_first else window.by_day()
