"""Performance of traces and spans, computed from rows of `agent_traces`. Durations are in milliseconds.

A trace in progress has no duration, whatever its source claims.
A span without an end has no duration; a span that ends before it starts, after a clock was set back, has duration 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.percentiles import percentile_columns
from monitoring_pipeline.analysis.sums import in_order, mean, total
from monitoring_pipeline.tables import TOKEN_COLUMNS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def trace_performance(traces: DataFrame, *more: Column) -> DataFrame:
    """One row per trace with the columns of the table `trace_performance` and `more` columns of the trace."""
    from pyspark.sql import functions as F

    durations = F.filter(F.transform("spans", span_ms), lambda ms: ms.isNotNull())
    total_ms = F.aggregate(durations, F.lit(0.0), lambda total, ms: total + ms)
    return traces.select(
        "trace_id",
        "trace_hour",
        "experiment_id",
        "trace_name",
        F.col("trace_info.status").alias("status"),
        F.size("spans").cast("long").alias("span_count"),
        F.size(_error_spans()).cast("long").alias("error_span_count"),
        ended_ms().alias("duration_ms"),
        total_ms.alias("total_span_duration_ms"),
        F.when(F.size(durations) > 0, total_ms / F.size(durations)).alias("avg_span_duration_ms"),
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cost_usd",
        *more,
    )


def ended_ms() -> Column:
    """The duration of a trace of `agent_traces` that has ended; null for one in progress, whose duration is a claim."""
    from pyspark.sql import functions as F

    return F.when(~F.col("trace_info.status").eqNullSafe("IN_PROGRESS"), F.col("duration_ms"))


def trace_errors(traces: DataFrame) -> DataFrame:
    """One row per trace that has status ERROR or an ERROR span, with the columns of the table `trace_errors`."""
    from pyspark.sql import functions as F

    # No lambda in a filter: Sail pushes it down to the Delta scan and fails there.
    failed = traces.where((F.col("trace_info.status") == "ERROR") | F.array_contains("spans.status", "ERROR"))
    return failed.select(
        "trace_id",
        "trace_hour",
        "experiment_id",
        "trace_name",
        F.col("trace_info.request_id").alias("request_id"),
        F.col("trace_info.timestamp").alias("timestamp"),
        F.col("trace_info.status").alias("status"),
        "request",
        F.transform(
            _error_spans(),
            lambda span: F.struct(
                span["span_id"].alias("span_id"),
                span["name"].alias("name"),
                span["span_type"].alias("span_type"),
                span["status_message"].alias("status_message"),
            ),
        ).alias("error_spans"),
    )


def hourly_performance(performance: DataFrame) -> DataFrame:
    """`trace_performance` aggregated by hour, experiment and trace name, and by hour and experiment (name null).

    Percentiles are exact, with linear interpolation (numpy's default), and are over traces that have ended.
    """
    named = performance.fillna({"trace_name": ""})
    figures = performance_figures(_also_together(named, "trace_name"), "trace_hour", "experiment_id", "trace_name")
    return figures.withColumnRenamed("trace_hour", "hour")


def performance_figures(performance: DataFrame, *keys: str) -> DataFrame:
    """`trace_performance` aggregated by its columns `keys`, with the figures of the table `hourly_performance`."""
    from pyspark.sql import functions as F

    is_error = (F.col("status") == "ERROR").cast("long")
    figures = performance.groupBy(*keys).agg(
        F.count("*").alias("trace_count"),
        F.sum(is_error).alias("error_count"),
        in_order("duration_ms").alias("durations_ms"),
        in_order("cost_usd").alias("costs_usd"),
        F.sum("span_count").alias("span_count"),
        *(F.sum(column).alias(column) for column in ("input_tokens", "output_tokens", "total_tokens")),
    )
    return figures.select(
        *keys,
        "trace_count",
        "error_count",
        (F.col("error_count") / F.col("trace_count")).alias("error_rate"),
        mean(F.col("durations_ms")).alias("avg_duration_ms"),
        *percentile_columns(F.col("durations_ms"), "duration_ms"),
        "span_count",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        total(F.col("costs_usd")).alias("cost_usd"),
    )


def span_profile(traces: DataFrame) -> DataFrame:
    """Span durations by hour, experiment, span type and span name, and by hour, experiment and span type (name null).

    `self_time_ms` is a span's duration minus the time in which at least one of its children ran: overlapping children
    count once, and a child's time outside its parent does not count. A missing name becomes "".
    """
    spans = _also_together(spans_with_self_time(traces, "trace_hour", "experiment_id"), "span_name")
    figures = span_figures(spans, "trace_hour", "experiment_id", "span_type", "span_name")
    return figures.withColumnRenamed("trace_hour", "hour")


def _also_together(rows: DataFrame, column: str) -> DataFrame:
    """Each row twice, the second time with null in `column`, so that one pass computes groups and their totals."""
    from pyspark.sql import functions as F

    return rows.withColumn(column, F.explode(F.array(column, F.lit(None).cast("string"))))


def span_figures(spans: DataFrame, *keys: str) -> DataFrame:
    """`spans_with_self_time` aggregated by its columns `keys`, with the figures of the table `span_profile`."""
    from pyspark.sql import functions as F

    figures = spans.groupBy(*keys).agg(
        F.count("*").alias("span_count"),
        F.sum((F.col("status") == "ERROR").cast("long")).alias("error_count"),
        F.sum("span_us").alias("total_us"),
        F.sum("self_time_us").alias("self_time_us"),
        in_order("span_us").alias("spans_us"),
    )
    spans_us = F.col("spans_us")
    finished = F.size(spans_us)
    return figures.select(
        *keys,
        "span_count",
        "error_count",
        (F.col("total_us") / 1000).alias("total_ms"),
        F.when(finished > 0, F.col("total_us") / finished / 1000).alias("avg_ms"),
        *percentile_columns(spans_us, "ms", divisor=1000),
        (F.get(spans_us, finished - 1) / 1000).alias("max_ms"),
        (F.col("self_time_us") / 1000).alias("self_time_ms"),
    )


def model_usage(traces: DataFrame) -> DataFrame:
    """The calls of models by hour, experiment, provider and model, columns of the table `model_usage`.

    Percentiles are exact, with linear interpolation; calls without a duration do not enter them.
    """
    from pyspark.sql import functions as F

    call = F.col("call")
    keys = ("hour", "experiment_id", "provider", "model")
    calls = traces.select(
        F.col("trace_hour").alias("hour"), "experiment_id", F.explode("model_calls").alias("call")
    ).select(
        "hour",
        "experiment_id",
        *(
            call[name].alias(name)
            for name in ("provider", "model", *TOKEN_COLUMNS, "cost_usd", "status", "duration_ms")
        ),
    )
    is_unpriced = F.col("cost_usd").isNull() & (F.col("total_tokens") > 0)
    figures = calls.groupBy(*keys).agg(
        F.count("*").alias("call_count"),
        F.sum((F.col("status") == "ERROR").cast("long")).alias("error_count"),
        *(F.sum(name).alias(name) for name in TOKEN_COLUMNS),
        in_order("cost_usd").alias("costs_usd"),
        F.sum(F.coalesce(is_unpriced, F.lit(False)).cast("long")).alias("unpriced_count"),
        in_order("duration_ms").alias("durations_ms"),
    )
    return figures.select(
        *keys,
        "call_count",
        "error_count",
        (F.col("error_count") / F.col("call_count")).alias("error_rate"),
        *TOKEN_COLUMNS,
        total(F.col("costs_usd")).alias("cost_usd"),
        "unpriced_count",
        *percentile_columns(F.col("durations_ms"), "ms"),
    )


def spans_with_self_time(traces: DataFrame, *columns: str) -> DataFrame:
    """One row per span: `columns` of its trace, span_type, span_name, status, span_us, self_time_us (microseconds)."""
    from pyspark.sql import functions as F

    # Only these fields are exploded: the text of a span is most of its bytes.
    slim = F.transform(
        "spans",
        lambda span: F.struct(
            span["span_id"].alias("span_id"),
            span["parent_id"].alias("parent_id"),
            F.coalesce(span["span_type"], F.lit("UNKNOWN")).alias("span_type"),
            F.coalesce(span["name"], F.lit("")).alias("span_name"),
            span["status"].alias("status"),
            F.unix_micros(span["start_time"]).alias("start_us"),
            F.unix_micros(span["end_time"]).alias("end_us"),
        ),
    )
    spans = traces.select("trace_id", *columns, F.explode(slim).alias("span")).select("trace_id", *columns, "span.*")
    children = (
        spans.where(F.col("parent_id").isNotNull() & F.col("start_us").isNotNull() & F.col("end_us").isNotNull())
        .groupBy("trace_id", F.col("parent_id").alias("span_id"))
        .agg(F.sort_array(F.collect_list(F.struct("start_us", "end_us"))).alias("children"))
    )
    span_us = _span_us(F.col("start_us"), F.col("end_us"))
    # In this order an engine keeps the parents in memory and streams the spans, hour after hour.
    return children.join(spans, ["trace_id", "span_id"], "right").select(
        *columns,
        "span_type",
        "span_name",
        "status",
        span_us.alias("span_us"),
        (span_us - F.coalesce(_covered_us(), F.lit(0).cast("long"))).alias("self_time_us"),
    )


def _covered_us() -> Column:
    """Microseconds of [start_us, end_us) covered by the union of the sorted `children`, computed by a sweep."""
    from pyspark.sql import functions as F

    zero = F.lit(0).cast("long")
    start = F.struct(zero.alias("covered"), F.col("start_us").alias("reached"))

    def sweep(state: Column, child: Column) -> Column:
        end = F.least(child["end_us"], F.col("end_us"))
        fresh = F.greatest(zero, end - F.greatest(child["start_us"], state["reached"]))
        return F.struct((state["covered"] + fresh).alias("covered"), F.greatest(state["reached"], end).alias("reached"))

    return F.aggregate("children", start, sweep, lambda state: state["covered"])


def span_ms(span: Column) -> Column:
    """The duration of a span of `agent_traces` in milliseconds; null without an end."""
    from pyspark.sql import functions as F

    return _span_us(F.unix_micros(span["start_time"]), F.unix_micros(span["end_time"])) / 1000


def _span_us(start_us: Column, end_us: Column) -> Column:
    from pyspark.sql import functions as F

    # Not greatest(0, …), which would return 0 instead of null for a span without an end.
    return F.when(end_us >= start_us, end_us - start_us).when(end_us < start_us, F.lit(0).cast("long"))


def _error_spans() -> Column:
    from pyspark.sql import functions as F

    return F.filter("spans", lambda span: span["status"] == "ERROR")
