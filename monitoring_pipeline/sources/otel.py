"""The source `otel`: Databricks' OpenTelemetry tables of spans and annotations in Unity Catalog.

`otel_trace` converts their rows to traces. Tables of version 2 store attributes as VARIANT, tables of version 1 as
text; a text that is valid JSON is parsed as JSON. Version 1 has no table of annotations: traces come from spans alone.

Compared with the same traces read from MLflow, the archive lacks what the tables do not store:

- the experiment: a trace's location is its tables; `experiment_id` is set only if [mlflow] experiments names a single
  experiment;
- in VARIANT, the order of an object's keys and the difference between 1 and 1.0;
- in version 1, the difference between JSON and a text that is valid JSON;
- a trace's start, duration and state: they are derived from the earliest span, the latest end and the root span;
- the run that logged a trace: a run link only connects a run and a trace, and the first one counts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.rows import timestamp
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.settings import in_catalog
from monitoring_pipeline.sources.base import Batch, HourCounts, TraceFrames
from monitoring_pipeline.sources.otel_trace import build_trace, trace_id_prefix
from monitoring_pipeline.sources.tables import (
    HOUR_US,
    by_hour,
    flattened,
    hour_number,
    needed,
    ns_to_us,
    open_table,
    type_of,
)
from monitoring_pipeline.windows import EPOCH, Window, to_microseconds

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# The longest supported trace. Within this distance of the window, three narrow columns of all spans are read to find
# when each trace began. Spans farther from a trace's first span are not found.
LONGEST_TRACE = timedelta(days=1)
CLOCK_SKEW = timedelta(hours=1)  # between the machines that stamp spans and annotations

SPAN_COLUMNS = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "start_time_unix_nano",
    "end_time_unix_nano",
    "attributes",
    "events",
    "links",
    "status",
)
ANNOTATION_COLUMNS = (
    "annotation_id",
    "target_id",
    "annotation_type",
    "name",
    "value",
    "comment",
    "metadata",
    "created_at",
    "updated_at",
    "deleted_at",
)

V1_PREFIX = ".mlflow_experiment_trace"  # the table prefix of version 1; MLflow omits it from trace ids


@dataclass(frozen=True)
class OtelSource:
    """The tables <location>_otel_spans and <location>_otel_annotations; a `Source`.

    `experiment_names` are id -> name. With `limited` and a single experiment, all traces belong to it.
    """

    spark: SparkResource
    location: str
    experiment_names: dict[str, str]
    limited: bool

    def counts(self, window: Window) -> dict[datetime, HourCounts]:
        """As `Source.counts`; a trace is in progress until its root span exists.

        The mark is the number of rows of spans and annotations, since every change appends to the tables.

        Raises:
            TrackingError: a table does not exist, or lacks a column.
        """
        from pyspark.sql import Window as Rows
        from pyspark.sql import functions as F

        spans, annotations = self._tables()
        near = spans.where(_started(spans, window.start - LONGEST_TRACE, window.end + LONGEST_TRACE)).select(
            "trace_id",
            F.col("start_time_unix_nano").alias("start_ns"),
            (F.coalesce("parent_span_id", F.lit("")) != "").cast("int").alias("is_child"),
        )
        near = near.withColumn("first_us", ns_to_us(F.min("start_ns").over(Rows.partitionBy("trace_id"))))
        number = hour_number(F.col("first_us"))
        # Only the spans that `read` of the trace's hour would find, so that counts do not depend on the window.
        reach_us = (number + 1) * HOUR_US + LONGEST_TRACE // timedelta(microseconds=1)
        in_window = F.col("first_us").between(to_microseconds(window.start), to_microseconds(window.end) - 1)
        traces = (
            near.where(in_window & (F.col("start_ns") < reach_us * 1000))
            .withColumn("number", number)
            .groupBy("trace_id", "number")
            .agg(F.min("is_child").alias("in_progress"), F.count("*").alias("rows"))
        )
        if annotations is None:
            return by_hour(traces.withColumn("assessments", F.lit(0)))
        latest = _current_rows(annotations, traces, window)
        annotated = latest.groupBy("trace_id").agg(
            F.sum(F.col("latest.annotation_type").isin("FEEDBACK", "EXPECTATION").cast("int")).alias("assessments"),
            F.sum("rows").alias("annotation_rows"),
        )
        joined = traces.join(annotated, "trace_id", "left").select(
            "trace_id",
            "number",
            "in_progress",
            F.coalesce("assessments", F.lit(0)).alias("assessments"),
            (F.col("rows") + F.coalesce("annotation_rows", F.lit(0))).alias("rows"),
        )
        return by_hour(joined)

    def read(self, window: Window) -> TraceFrames:
        """As `Source.read`."""
        return TraceFrames(window, self.traces)

    def moved(self, hours: Mapping[str, datetime]) -> Iterator[Batch]:
        """Return nothing: tables are not searched by trace id. Archiving a moved trace's new hour finds it."""
        return iter(())

    def traces(self, window: Window) -> DataFrame:
        """The traces whose earliest span starts in `window`, with the columns of `FLATTENED`.

        Raises:
            TrackingError: a table does not exist, or lacks a column.
        """
        spans, annotations = self._tables()
        place = self.location.removesuffix(V1_PREFIX) if in_catalog(self.location) else None
        only = next(iter(self.experiment_names)) if self.limited and len(self.experiment_names) == 1 else None
        build = functools.partial(build_trace, place=place, experiment_id=only)
        return flattened(_traces(spans, annotations, window, place), build, self.experiment_names, only)

    def _tables(self) -> tuple[DataFrame, DataFrame | None]:
        """The tables of spans and of annotations; the latter is None if missing, which only version 1 allows."""
        name = f"{self.location}_otel_spans"
        spans = open_table(self.spark, name)
        for column in SPAN_COLUMNS:
            needed(spans.schema, (column,), name)
        return spans, _annotations(self.spark, self.location, is_optional="time" not in spans.columns)


def _traces(spans: DataFrame, annotations: DataFrame | None, window: Window, place: str | None) -> DataFrame:
    """One row per trace that starts in `window`: `trace_id`, `started`, and `spans` and `annotations` as JSON."""
    from pyspark.sql import functions as F

    near = spans.where(_started(spans, window.start - LONGEST_TRACE, window.end + LONGEST_TRACE))
    start_ns = F.col("start_time_unix_nano")
    began = near.groupBy("trace_id").agg(F.min(start_ns).alias("started"), F.max(start_ns).alias("latest_ns"))
    began = began.where(F.col("started").between(_nanoseconds(window.start), _nanoseconds(window.end) - 1))
    # Read all columns only up to the latest span of the window's traces: usually far less than LONGEST_TRACE.
    latest_ns = began.agg(F.max("latest_ns")).collect()[0][0]
    reach = window.end if latest_ns is None else EPOCH + timedelta(microseconds=latest_ns // 1000 + 1)
    whole = spans.where(_started(spans, window.start, reach)).select(
        "trace_id", _json(spans, SPAN_COLUMNS).alias("span")
    )
    traces = (
        whole.join(began, "trace_id")
        .groupBy("trace_id")
        .agg(F.min("started").alias("started"), F.collect_set("span").alias("spans"))
    )
    if annotations is None:
        traces = traces.withColumn("annotations", F.array().cast("array<string>"))
    else:
        traces = traces.join(_current_json(annotations, began, window), "trace_id", "left")
    return traces.withColumn("trace_id", F.concat(F.lit(trace_id_prefix(place)), "trace_id"))


def _started(spans: DataFrame, start: datetime, end: datetime) -> Column:
    """Whether a span started in [start, end), as a condition on all time columns: any may cluster the table."""
    ns = spans["start_time_unix_nano"]
    within = (ns >= _nanoseconds(start)) & (ns < _nanoseconds(end))
    if "time" in spans.columns:
        within &= (spans["time"] >= timestamp(start)) & (spans["time"] <= timestamp(end))
    if "date" in spans.columns:
        within &= spans["date"].between(start.date(), end.date())
    return within


def _annotations(spark: SparkResource, location: str, is_optional: bool) -> DataFrame | None:
    name = f"{location}_otel_annotations"
    try:
        annotations = open_table(spark, name)
    except TrackingError:
        if is_optional:
            return None
        raise
    for column in ANNOTATION_COLUMNS:
        needed(annotations.schema, (column,), name)
    return annotations.withColumnRenamed("target_id", "trace_id")


def _current_json(annotations: DataFrame, began: DataFrame, window: Window) -> DataFrame:
    """The current annotations of each trace, as JSON."""
    from pyspark.sql import functions as F

    latest = _current_rows(annotations, began, window, _json(annotations, ANNOTATION_COLUMNS).alias("row"))
    return latest.groupBy("trace_id").agg(F.collect_list("latest.row").alias("annotations"))


def _current_rows(annotations: DataFrame, began: DataFrame, window: Window, *columns: Column) -> DataFrame:
    """One row per current annotation of the traces `began`: `latest`, and `rows`, the number of its rows.

    `latest` has the annotation's type and `columns`. Deleted annotations, according to their latest row, are left out.
    """
    from pyspark.sql import functions as F

    created = annotations["created_at"]
    since = annotations.where(created.isNull() | (created >= timestamp(window.start - CLOCK_SKEW)))
    ours = since.join(began.select("trace_id"), "trace_id", "left_semi")
    row = F.struct("updated_at", F.col("deleted_at").isNotNull().alias("deleted"), "annotation_type", *columns)
    latest = ours.groupBy("trace_id", "annotation_id").agg(F.max(row).alias("latest"), F.count("*").alias("rows"))
    return latest.where(~F.col("latest.deleted"))


def _json(table: DataFrame, columns: tuple[str, ...]) -> Column:
    """The columns that exist in the table, as one JSON object: times in microseconds, VARIANT as a text of JSON."""
    from pyspark.sql import functions as F

    return F.to_json(F.struct(*[_jsonable(table, name).alias(name) for name in columns if name in table.columns]))


def _jsonable(table: DataFrame, name: str) -> Column:
    from pyspark.sql import functions as F
    from pyspark.sql.types import TimestampType, VariantType

    if isinstance(type_of(table.schema, name), TimestampType):
        return F.unix_micros(name)
    if isinstance(type_of(table.schema, name), VariantType):
        return F.to_json(name)
    if isinstance(type_of(table.schema, f"{name}.attributes"), VariantType):
        return F.transform(name, lambda element: element.withField("attributes", F.to_json(element["attributes"])))
    return F.col(name)


def _nanoseconds(moment: datetime) -> int:
    return to_microseconds(moment) * 1000
