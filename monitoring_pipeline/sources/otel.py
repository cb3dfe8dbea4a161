"""Traces from the OpenTelemetry tables that Databricks keeps in Unity Catalog: spans, and annotations of traces.

How the rows become a trace is what MLflow 3.17.2 does with spans that come by OTLP (`Span.from_otel_proto`,
`translate_span_when_storing`, `SqlAlchemyStore.log_spans`), and what databricks-agents 1.13.0 writes into such tables
(`databricks.migrations`). Tables of version 2 hold attributes as VARIANT, those of version 1 as text, where a text that
is JSON is taken for it. Version 1 has no table of annotations of its own: a trace is what its spans say.

What such tables cannot hold, so that the archive differs from one that was read from MLflow:

- the experiment: the tables are a trace's place; `experiment_id` is that of the one experiment in [mlflow] experiments;
- in VARIANT, the order of an object's keys and whether a whole number was 1 or 1.0;
- in version 1, whether a text that is JSON was a text;
- a trace's own start, duration and state: they are those of its spans, the earliest, the latest and the root's;
- a run link says that a run and a trace belong together: the first one counts as the run that the trace was logged in.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.rows import timestamp
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.settings import in_catalog
from monitoring_pipeline.sources.entities import assessment_of, in_order, milliseconds, span_of, value_of
from monitoring_pipeline.sources.tables import microseconds, needed, open_table, type_of, worked
from monitoring_pipeline.windows import EPOCH, Window

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, Trace, TraceState
    from mlflow.entities.trace_location import TraceLocation
    from mlflow.tracing.utils import SpanAggregationNode
    from pyspark.sql import Column, DataFrame

# How long a trace may last. Spans that far from the window are looked at, three thin columns of them, to see whether a
# trace began in the window or earlier; spans that are farther from its first one are not found.
LONGEST_TRACE = timedelta(days=1)
CLOCK_SKEW = timedelta(hours=1)  # between the machine that stamps spans and the one that stamps annotations

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

# Keys of an annotation's metadata that are no metadata of the assessment's but fields of it.
SOURCE_TYPE, SOURCE_ID = "mlflow.source.source_type", "mlflow.source.source_id"
ERROR_CODE, ERROR_MESSAGE = "mlflow.error.error_code", "mlflow.error.error_message"
STACK_TRACE = "mlflow.error.stack_trace"
SPAN_ID, OVERRIDES, VALID = "mlflow.span_id", "mlflow.overrides", "mlflow.valid"
FORMAT = "mlflow.expectation.serialization_format"
FIELDS = {SOURCE_TYPE, SOURCE_ID, ERROR_CODE, ERROR_MESSAGE, STACK_TRACE, SPAN_ID, OVERRIDES, VALID, FORMAT}


V1_PREFIX = ".mlflow_experiment_trace"  # the prefix of version 1, which MLflow leaves out of trace ids


def otel_traces(
    spark: SparkResource, location: str, experiment_names: dict[str, str], limited: bool, window: Window
) -> DataFrame:
    """The traces of the tables <location>_otel_… that start in `window`, as `in_engine.worked` gives them.

    A trace starts with its earliest span. With `limited` and one experiment in `experiment_names` (id -> name) the
    traces are taken to be of that.

    Raises:
        TrackingError: a table is not there, or lacks a column.
    """
    spans, annotations = opened(spark, location)
    place = location.removesuffix(V1_PREFIX) if in_catalog(location) else None
    only = next(iter(experiment_names)) if limited and len(experiment_names) == 1 else None
    traces = _traces(spans, annotations, window, place)
    return worked(traces, functools.partial(build_trace, place=place, experiment_id=only), experiment_names, only)


def opened(spark: SparkResource, location: str) -> tuple[DataFrame, DataFrame | None]:
    """The tables of spans and of annotations; None where tables of version 1 have no such.

    Raises:
        TrackingError: a table is not there, or lacks a column.
    """
    name = f"{location}_otel_spans"
    spans = open_table(spark, name)
    for column in SPAN_COLUMNS:
        needed(spans.schema, (column,), name)
    return spans, _annotations(spark, location, is_optional="time" not in spans.columns)


def _traces(spans: DataFrame, annotations: DataFrame | None, window: Window, place: str | None) -> DataFrame:
    """A row for each trace that starts in `window`: its id, its start, and its spans and annotations as JSON."""
    from pyspark.sql import functions as F

    near = spans.where(started(spans, window.start - LONGEST_TRACE, window.end + LONGEST_TRACE))
    start_ns = F.col("start_time_unix_nano")
    began = near.groupBy("trace_id").agg(F.min(start_ns).alias("started"), F.max(start_ns).alias("latest_ns"))
    began = began.where(F.col("started").between(_nanoseconds(window.start), _nanoseconds(window.end) - 1))
    # All columns are read only as far as the traces of the window go, which is far less than they might.
    latest_ns = began.agg(F.max("latest_ns")).collect()[0][0]
    reach = window.end if latest_ns is None else EPOCH + timedelta(microseconds=latest_ns // 1000 + 1)
    whole = spans.where(started(spans, window.start, reach)).select(
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
        traces = traces.join(_current(annotations, began, window), "trace_id", "left")
    return traces.withColumn("trace_id", F.concat(F.lit(_id_prefix(place)), "trace_id"))


def started(spans: DataFrame, start: datetime, end: datetime) -> Column:
    """Whether a span started in [start, end), said of all columns that tell so: the table may be laid out by any."""
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


def _current(annotations: DataFrame, began: DataFrame, window: Window) -> DataFrame:
    """The annotations of each trace as they stand, as JSON."""
    from pyspark.sql import functions as F

    latest = standing(annotations, began, window, _json(annotations, ANNOTATION_COLUMNS).alias("row"))
    return latest.groupBy("trace_id").agg(F.collect_list("latest.row").alias("annotations"))


def standing(annotations: DataFrame, began: DataFrame, window: Window, *columns: Column) -> DataFrame:
    """A row for each annotation of the traces `began`: the `latest` of its `rows`, unless that says it was deleted.

    `latest` has the annotation's type and `columns`.
    """
    from pyspark.sql import functions as F

    created = annotations["created_at"]
    since = annotations.where(created.isNull() | (created >= timestamp(window.start - CLOCK_SKEW)))
    ours = since.join(began.select("trace_id"), "trace_id", "left_semi")
    row = F.struct("updated_at", F.col("deleted_at").isNotNull().alias("deleted"), "annotation_type", *columns)
    latest = ours.groupBy("trace_id", "annotation_id").agg(F.max(row).alias("latest"), F.count("*").alias("rows"))
    return latest.where(~F.col("latest.deleted"))


def _json(table: DataFrame, columns: tuple[str, ...]) -> Column:
    """Those of the columns that the table has as one JSON object, times in microseconds, VARIANT as JSON within it."""
    from pyspark.sql import functions as F

    return F.to_json(F.struct(*[_plain(table, name).alias(name) for name in columns if name in table.columns]))


def _plain(table: DataFrame, name: str) -> Column:
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
    return microseconds(moment) * 1000


def _id_prefix(place: str | None) -> str:
    return "tr-" if place is None else f"trace:/{place}/"


def build_trace(row: dict[str, Any], place: str | None, experiment_id: str | None) -> Trace:
    """The trace of a row; `place` is the part of trace ids that names the tables, None for tables in a folder.

    Raises:
        Exception: whatever malformed rows make this raise; the trace goes into the quarantine.
    """
    from mlflow.entities import Trace, TraceData, TraceInfo

    spans = _spans(row["trace_id"], [json.loads(text) for text in sorted(row["spans"])])
    annotations = [json.loads(text) for text in row["annotations"] or []]
    annotations.sort(key=lambda annotation: (annotation.get("created_at") or 0, annotation["annotation_id"]))
    told = _told(annotations)
    started_ms = min(span.start_time_ns for span in spans) // 10**6
    ends_ns = [span.end_time_ns for span in spans if span.end_time_ns]
    info = TraceInfo(
        trace_id=row["trace_id"],
        trace_location=_location(place, experiment_id),
        request_time=started_ms,
        state=_state(spans),
        request_preview=told.get("request_preview"),
        response_preview=told.get("response_preview"),
        client_request_id=told.get("client_request_id"),
        execution_duration=max(ends_ns) // 10**6 - started_ms if ends_ns else None,
        trace_metadata=_metadata_of(spans) | _run(annotations) | (told.get("trace_metadata") or {}),
        tags=_tags_of(spans) | {tag["name"]: _text(tag) for tag in annotations if tag["annotation_type"] == "TAG"},
        assessments=[
            _assessment(annotation, row["trace_id"])
            for annotation in annotations
            if annotation["annotation_type"] in ("FEEDBACK", "EXPECTATION")
        ],
    )
    return Trace(info, TraceData(spans))


def _spans(trace_id: str, rows: list[dict[str, Any]]) -> list[Span]:
    """The spans, each once: of several rows the one with the latest end."""
    latest = {row["span_id"]: row for row in sorted(rows, key=lambda row: row.get("end_time_unix_nano") or 0)}
    return in_order([_span(trace_id, row) for row in latest.values()])


def _span(trace_id: str, row: dict[str, Any]) -> Span:
    from mlflow.entities import Span
    from mlflow.tracing.otel.translation import translate_span_when_storing
    from mlflow.tracing.utils import dump_span_attribute_value

    status = row.get("status") or {}
    span = span_of(
        trace_id=trace_id,
        span_id=row["span_id"],
        parent_id=row.get("parent_span_id"),
        name=row.get("name"),
        start_ns=row["start_time_unix_nano"],
        end_ns=row.get("end_time_unix_nano"),
        status_code=status.get("code"),
        status_message=status.get("message"),
        attributes={key: dump_span_attribute_value(value) for key, value in _values(row.get("attributes")).items()},
        events=[{**event, "attributes": _values(event.get("attributes"))} for event in row.get("events") or []],
        links=[
            {
                "trace_id": _id_prefix(None) + link["trace_id"],
                "span_id": link["span_id"],
                "attributes": _values(link.get("attributes")) or None,
            }
            for link in row.get("links") or []
        ],
    )
    return Span.from_dict(translate_span_when_storing(span))


def _state(spans: list[Span]) -> TraceState:
    from mlflow.entities import SpanStatusCode, TraceState

    root = spans[0]
    if root.parent_id is not None:  # a root span is written as it ends
        return TraceState.IN_PROGRESS
    return TraceState.ERROR if root.status.status_code == SpanStatusCode.ERROR else TraceState.OK


def _metadata_of(spans: list[Span]) -> dict[str, str]:
    """What MLflow concludes from spans where no client has said it: user, session, tokens and cost."""
    from mlflow.tracing.constant import GenAiSemconvKey, SpanAttributeKey, TraceMetadataKey
    from mlflow.tracing.utils import aggregate_cost_from_span_nodes, aggregate_usage_from_span_nodes

    sessions = (SpanAttributeKey.SESSION_ID, GenAiSemconvKey.CONVERSATION_ID)
    concluded = {
        TraceMetadataKey.TRACE_USER: _first(spans, SpanAttributeKey.USER_ID),
        TraceMetadataKey.TRACE_SESSION: _first(spans, *sessions),
        TraceMetadataKey.TOKEN_USAGE: aggregate_usage_from_span_nodes(_nodes(spans, SpanAttributeKey.CHAT_USAGE)),
        TraceMetadataKey.COST: aggregate_cost_from_span_nodes(_nodes(spans, SpanAttributeKey.LLM_COST)),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in concluded.items() if value}


def _nodes(spans: list[Span], attribute: str) -> list[SpanAggregationNode]:
    from mlflow.tracing.utils import SpanAggregationNode

    values = ((span, span.get_attribute(attribute)) for span in spans)
    return [
        SpanAggregationNode(span.span_id, span.parent_id, value if isinstance(value, dict) else None)
        for span, value in values
    ]


def _first(spans: list[Span], *attributes: str) -> Any:
    return next((value for span in spans for name in attributes if (value := span.get_attribute(name))), None)


def _tags_of(spans: list[Span]) -> dict[str, str]:
    """The tags that MLflow's OTLP exporter puts among the attributes of the root."""
    from mlflow.tracing.constant import SpanAttributeKey

    prefix = SpanAttributeKey.TRACE_TAG_PREFIX
    if spans[0].parent_id is not None:
        return {}
    attributes = spans[0].attributes
    return {key.removeprefix(prefix): str(value) for key, value in attributes.items() if key.startswith(prefix)}


def _told(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """What the client said of the trace itself: client_request_id, previews and trace_metadata."""
    values = [_value(annotation) for annotation in annotations if annotation["annotation_type"] == "METADATA"]
    return values[-1] if values else {}


def _run(annotations: list[dict[str, Any]]) -> dict[str, str]:
    from mlflow.tracing.constant import TraceMetadataKey

    runs = [_text(annotation) for annotation in annotations if annotation["annotation_type"] == "RUN_LINK"]
    return {TraceMetadataKey.SOURCE_RUN: runs[0]} if runs else {}


def _assessment(annotation: dict[str, Any], trace_id: str) -> Assessment:
    told = value_of(annotation.get("metadata")) or {}
    value = _value(annotation)
    return assessment_of(
        is_expectation=annotation["annotation_type"] == "EXPECTATION",
        value=value_of(value) if told.get(FORMAT) and isinstance(value, str) else value,
        trace_id=trace_id,
        assessment_id=annotation["annotation_id"],
        name=annotation["name"],
        source_type=told.get(SOURCE_TYPE),
        source_id=told.get(SOURCE_ID),
        rationale=annotation.get("comment"),
        error_code=told.get(ERROR_CODE),
        error_message=told.get(ERROR_MESSAGE),
        stack_trace=told.get(STACK_TRACE),
        span_id=told.get(SPAN_ID),
        created_ms=milliseconds(annotation["created_at"]),
        updated_ms=milliseconds(annotation.get("updated_at") or annotation["created_at"]),
        metadata={key: str(value) for key, value in told.items() if key not in FIELDS},
        overrides=told.get(OVERRIDES),
        is_valid=str(told.get(VALID)).lower() != "false",
    )


def _location(place: str | None, experiment_id: str | None) -> TraceLocation:
    from mlflow.entities.trace_location import TraceLocation, TraceLocationType

    if place is not None:
        catalog, schema, *prefix = place.split(".")
        if prefix:
            return TraceLocation.from_databricks_uc_table_prefix(catalog, schema, *prefix)
        return TraceLocation.from_databricks_uc_schema(catalog, schema)
    if experiment_id is not None:
        return TraceLocation.from_experiment_id(experiment_id)
    return TraceLocation(TraceLocationType.TRACE_LOCATION_TYPE_UNSPECIFIED)


def _value(annotation: dict[str, Any]) -> Any:
    return value_of(annotation.get("value"))


def _text(annotation: dict[str, Any]) -> str:
    value = _value(annotation)
    return value if isinstance(value, str) else annotation.get("value") or ""


def _values(attributes: str | dict[str, str] | None) -> dict[str, Any]:
    """Attributes of VARIANT, which come as JSON, or of text."""
    if isinstance(attributes, str):
        return json.loads(attributes)
    return {key: value_of(text) for key, text in (attributes or {}).items()}
