"""Sessions: all traces of one session_id of an experiment, in order, which some scorers judge as a whole.

A session stands in the tables at its first trace. It may last SPAN: what is further away belongs to another session.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import EPOCH, Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SPAN = timedelta(days=7)
KEY = ("experiment_id", "session_id")


def session_heads(lake: LakeResource, idle: timedelta, window: Window, version: int) -> DataFrame:
    """The first traces of the sessions that begin in `window`, with what is known of the session.

    Columns trace_id, represents (true), length (traces of the session), last_active (when its last trace began) and
    quiet (whether `idle` has passed since the last of its traces ended).
    """
    from pyspark.sql import Window as By
    from pyspark.sql import functions as F

    order = By.partitionBy(*KEY).orderBy("started", "trace_id")
    whole = By.partitionBy(*KEY)
    ended_ms = F.unix_millis("started") + F.coalesce("duration_ms", F.lit(0.0))
    quiet_since_ms = (datetime.now(UTC) - idle - EPOCH) / timedelta(milliseconds=1)
    return (
        _members(lake, _around(window), version)
        .withColumns(
            {
                "place": F.row_number().over(order),
                "length": F.count("*").over(whole),
                "last_active": F.max("started").over(whole),
                "quiet": F.max(ended_ms).over(whole) <= quiet_since_ms,
            }
        )
        .where(F.col("place") == 1)
        .select("trace_id", F.lit(True).alias("represents"), "length", "last_active", "quiet")
    )


def whole_sessions(lake: LakeResource, heads: DataFrame, window: Window, version: int) -> DataFrame:
    """The traces of the sessions that begin with one of `heads` (column trace_id, in `window`).

    Columns trace_id (of the first), session_id, traces (array of the traces' JSON, in order) and prompt_bytes (of
    their requests and responses).
    """
    from pyspark.sql import functions as F

    text_bytes = F.octet_length(F.coalesce("request", F.lit(""))) + F.octet_length(F.coalesce("response", F.lit("")))

    around = Window(window.start, window.end + SPAN)
    members = _members(lake, around, version, "request", "response", "trace_json")
    keys = members.join(heads, "trace_id").select(*KEY, F.col("trace_id").alias("head"))
    return (
        members.join(keys, list(KEY))
        .groupBy("head", "session_id")
        .agg(
            F.sort_array(F.collect_list(F.struct("started", "trace_id", "trace_json"))).alias("traces"),
            F.sum(text_bytes).alias("prompt_bytes"),
        )
        .select(
            F.col("head").alias("trace_id"), "session_id", F.col("traces.trace_json").alias("traces"), "prompt_bytes"
        )
    )


def earlier(window: Window) -> Window:
    """The time before `window` in which a session that goes on in it may have begun."""
    return Window(window.start - SPAN, window.start)


def _members(lake: LakeResource, window: Window, version: int, *columns: str) -> DataFrame:
    """The traces of `window` that belong to a session: trace_id, KEY, started, duration_ms and the given columns."""
    from pyspark.sql import functions as F

    traces = lake.read(AGENT_TRACES, window, version)
    return traces.where(F.col("session_id").isNotNull()).select(
        "trace_id", *KEY, F.col("trace_info.timestamp").alias("started"), "duration_ms", *columns
    )


def _around(window: Window) -> Window:
    return Window(window.start - SPAN, window.end + SPAN)
