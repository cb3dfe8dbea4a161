"""How much the tables of Databricks have of each hour, counted in the engine from their thinnest columns.

Both are appended to, so the mark is the number of rows: whatever changes a trace adds one.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.sources.delta import TRACE, rows_within
from monitoring_pipeline.sources.otel import LONGEST_TRACE, opened, standing, started
from monitoring_pipeline.sources.tables import microseconds, needed, present, type_of
from monitoring_pipeline.windows import EPOCH, HOUR, Window

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

HOUR_US = microseconds(EPOCH + HOUR)


def delta_counts(
    spark: SparkResource, location: str, experiment_names: dict[str, str], limited: bool, window: Window
) -> dict[datetime, HourCounts]:
    """What the table of archived traces at `location` has of each hour in `window`; arguments as of `archived_traces`.

    A trace that was appended several times is one, in progress when all its rows are, with the assessments of the row
    that has most.

    Raises:
        TrackingError: the table is not there, or lacks a column.
    """
    from pyspark.sql import functions as F

    rows = rows_within(spark, location, experiment_names, limited, window)
    trace_id, requested, state = (
        needed(rows.schema, TRACE[name], location) for name in ("trace_id", "request_time", "state")
    )
    row = rows.select(
        F.coalesce(F.col(trace_id), F.lit("")).alias("trace_id"),
        _hour_number(rows, requested).alias("number"),
        (F.col(state) == "IN_PROGRESS").cast("int").alias("in_progress"),
        _number_of_assessments(rows).alias("assessments"),
    )
    traces = row.groupBy("number", "trace_id").agg(
        F.min("in_progress").alias("in_progress"),
        F.max("assessments").alias("assessments"),
        F.count("*").alias("rows"),
    )
    return _by_hour(traces)


def otel_counts(spark: SparkResource, location: str, window: Window) -> dict[datetime, HourCounts]:
    """What the tables <location>_otel_… have of each hour in `window`; a trace is in progress until its root is there.

    Raises:
        TrackingError: a table is not there, or lacks a column.
    """
    from pyspark.sql import Window as Rows
    from pyspark.sql import functions as F

    spans, annotations = opened(spark, location)
    near = spans.where(started(spans, window.start - LONGEST_TRACE, window.end + LONGEST_TRACE)).select(
        "trace_id",
        F.col("start_time_unix_nano").alias("start_ns"),
        (F.coalesce("parent_span_id", F.lit("")) != "").cast("int").alias("is_child"),
    )
    near = near.withColumn("first_us", _microseconds(F.min("start_ns").over(Rows.partitionBy("trace_id"))))
    number = _number(F.col("first_us"))
    # As far as the trace's own hour is looked at when that is read, so that the count is the same in any window.
    reach_us = (number + 1) * HOUR_US + microseconds(EPOCH + LONGEST_TRACE)
    in_window = (F.col("first_us") >= microseconds(window.start)) & (F.col("first_us") < microseconds(window.end))
    traces = (
        near.where(in_window & (F.col("start_ns") < reach_us * 1000))
        .withColumn("number", number)
        .groupBy("trace_id", "number")
        .agg(F.min("is_child").alias("in_progress"), F.count("*").alias("rows"))
    )
    if annotations is None:
        return _by_hour(traces.withColumn("assessments", F.lit(0)))
    latest = standing(annotations, traces, window)
    of_trace = latest.groupBy("trace_id").agg(
        F.sum(F.col("latest.annotation_type").isin("FEEDBACK", "EXPECTATION").cast("int")).alias("assessments"),
        F.sum("rows").alias("annotation_rows"),
    )
    beside = traces.join(of_trace, "trace_id", "left").select(
        "trace_id",
        "number",
        "in_progress",
        F.coalesce("assessments", F.lit(0)).alias("assessments"),
        (F.col("rows") + F.coalesce("annotation_rows", F.lit(0))).alias("rows"),
    )
    return _by_hour(beside)


def _by_hour(traces: DataFrame) -> dict[datetime, HourCounts]:
    """The counts from a row for each trace: `number` of its hour, `in_progress` (0, 1), `assessments`, `rows`."""
    from pyspark.sql import functions as F

    by_hour = traces.groupBy("number").agg(
        F.count("*").alias("traces"),
        F.sum("in_progress").alias("in_progress"),
        F.sum("assessments").alias("assessments"),
        F.sum("rows").alias("rows"),
    )
    return {
        EPOCH + row["number"] * HOUR: HourCounts(
            row["traces"], row["in_progress"] or 0, row["assessments"], f"rows {row['rows']}"
        )
        for row in by_hour.toArrow().to_pylist()
    }


def _hour_number(rows: DataFrame, requested: str) -> Column:
    """The number of the hour since 1970, of a time or a number in ms, us or ns (see `in_engine.nanoseconds`)."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import LongType

    time = rows[requested]
    if not isinstance(type_of(rows.schema, requested), LongType):
        return _number(F.unix_micros(time.cast("timestamp")))
    in_us = F.when(time < 10**14, time * 1000).when(time < 10**17, time).otherwise(_microseconds(time))
    return _number(in_us)


def _microseconds(ns: Column) -> Column:
    return ((ns - ns % 1000) / 1000).cast("long")  # exact, where the division of the whole would be rounded


def _number(us: Column) -> Column:
    return ((us - us % HOUR_US) / HOUR_US).cast("long")


def _number_of_assessments(rows: DataFrame) -> Column:
    from pyspark.sql import functions as F
    from pyspark.sql.types import StringType, VariantType

    path = present(rows.schema, TRACE["assessments"])
    if path is None:
        return F.lit(0)
    kind = type_of(rows.schema, path)
    if isinstance(kind, VariantType):
        number = F.json_array_length(F.to_json(path))
    else:
        number = F.json_array_length(path) if isinstance(kind, StringType) else F.size(path)
    return F.coalesce(F.greatest(number, F.lit(0)), F.lit(0))
