"""Sessions: all traces of an experiment with one session_id, in order; session scorers judge them as a whole.

A session begins with a trace that no trace of the same session_id precedes within SPAN; the tables record the session
under this first trace. It contains the traces of the following SPAN; later traces of a longer one belong to no session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.parts import read_digest
from monitoring_pipeline.windows import SESSION_SPAN as SPAN
from monitoring_pipeline.windows import Window, to_milliseconds

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

SPAN_MS = SPAN // timedelta(milliseconds=1)


def is_unfinished() -> Column:
    """Whether a trace, a row of `agent_traces`, has not ended."""
    from pyspark.sql import functions as F

    return F.coalesce(F.col("trace_info.status") == "IN_PROGRESS", F.lit(False))


def is_settled(unfinished_after: timedelta) -> Column:
    """Whether a trace, a row of `agent_traces`, has ended, or has not changed for `unfinished_after` in the archive.

    The archive's own times count: those of a trace are claims of its source.
    """
    from pyspark.sql import functions as F

    return ~is_unfinished() | (F.col("created_at") <= F.lit(datetime.now(UTC) - unfinished_after))


def trace_facts(scorer: ConfiguredScorer) -> dict[str, Column]:
    """What the ledger needs of a trace, from the columns of `agent_traces`: content_digest, unfinished and quiet."""
    return {
        "content_digest": read_digest(scorer.reads),
        "unfinished": is_unfinished(),
        "quiet": is_settled(scorer.unfinished_after),
    }


def session_heads(lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int) -> DataFrame:
    """The first trace of each session that begins in `window`, with facts about the session.

    Columns trace_id, represents (true), length (traces of the session), active_until_ms (end of its last trace, in
    milliseconds since 1970), quiet (whether all its traces are settled and `session_idle` has passed since then),
    unfinished (whether one has not ended) and content_digest (of what the scorer reads of all; null if one has none).
    """
    from pyspark.sql import functions as F

    idle = scorer.session_idle or timedelta(0)
    quiet_since_ms = to_milliseconds(datetime.now(UTC) - idle)
    in_order = F.sort_array(F.collect_list(F.struct("started_ms", "trace_id", "content_digest")))
    digest = F.sha2(F.concat_ws(" ", F.transform(in_order, lambda one: one["content_digest"])), 256)
    return (
        _members(lake, Window(window.start - SPAN, window.end + SPAN), version, trace_facts(scorer))
        .groupBy(F.col("head").alias("trace_id"))
        .agg(
            F.lit(True).alias("represents"),
            F.count("*").alias("length"),
            F.max("ended_ms").alias("active_until_ms"),
            ((F.max("ended_ms") <= quiet_since_ms) & F.min("quiet")).alias("quiet"),
            F.max("unfinished").alias("unfinished"),
            F.when(F.count("content_digest") == F.count("*"), digest).alias("content_digest"),
        )
    )


def whole_sessions(
    lake: LakeResource, heads: DataFrame, window: Window, version: int, text: Sequence[str]
) -> DataFrame:
    """The sessions that begin with one of `heads` (column trace_id); `window` must cover all of their traces.

    Columns trace_id (of the first trace), session_id, session_trace_ids and traces (arrays of the traces' ids and JSON,
    in order), and prompt_bytes (bytes of all their traces in the columns `text`).
    """
    from pyspark.sql import functions as F

    members = _members(lake, window, version).join(heads.select(F.col("trace_id").alias("head")), "head")
    return (
        members.join(lake.read(AGENT_TRACES, window, version), "trace_id")
        .groupBy("head", "session_id")
        .agg(
            # Start and id are unique together, so sorting never compares the JSON.
            F.sort_array(F.collect_list(F.struct("started_ms", "trace_id", "trace_json"))).alias("traces"),
            F.sum(text_bytes(text)).alias("prompt_bytes"),
        )
        .select(
            F.col("head").alias("trace_id"),
            "session_id",
            F.col("traces.trace_id").alias("session_trace_ids"),
            F.col("traces.trace_json").alias("traces"),
            "prompt_bytes",
        )
    )


def text_bytes(columns: Sequence[str]) -> Column:
    """The UTF-8 bytes of a trace in the columns."""
    from pyspark.sql import functions as F

    return sum((F.octet_length(F.coalesce(name, F.lit(""))) for name in columns), F.lit(0))


def earlier(window: Window) -> Window:
    """The time before `window` in which a session that continues in it may have begun."""
    return Window(window.start - SPAN, window.start)


def later(window: Window) -> Window:
    """The time after `window` in which a session that begins in it may continue."""
    return Window(window.end, window.end + SPAN)


def _members(lake: LakeResource, window: Window, version: int, facts: Mapping[str, Column] | None = None) -> DataFrame:
    """The traces of `window` that belong to a session: trace_id, head (trace_id of the first), started_ms, ended_ms.

    `facts` are further columns, computed from those of `agent_traces`. Traces in the first SPAN of the window may
    actually belong to a session that began before it.
    """
    from pyspark.sql import Window as By
    from pyspark.sql import functions as F

    in_order = By.partitionBy("experiment_id", "session_id").orderBy("started_ms", "trace_id")
    started_ms = F.unix_millis("trace_info.timestamp")
    lasts_ms = F.greatest(F.col("duration_ms").cast("long"), F.lit(0))
    since_the_last_ms = F.col("started_ms") - F.lag("started_ms").over(in_order)
    begins = F.coalesce(since_the_last_ms >= SPAN_MS, F.lit(True))
    return (
        lake.read(AGENT_TRACES, window, version)
        .where(F.col("session_id") != "")
        .select(
            "trace_id",
            "experiment_id",
            "session_id",
            started_ms.alias("started_ms"),
            (started_ms + lasts_ms).alias("ended_ms"),
            *(column.alias(name) for name, column in (facts or {}).items()),
        )
        .withColumn("first", F.when(begins, F.struct("trace_id", "started_ms")))
        .withColumn("first", F.last("first", ignorenulls=True).over(in_order))
        .where(F.col("started_ms") - F.col("first.started_ms") < SPAN_MS)
        .select("trace_id", F.col("first.trace_id").alias("head"), "started_ms", "ended_ms", *(facts or {}))
    )
