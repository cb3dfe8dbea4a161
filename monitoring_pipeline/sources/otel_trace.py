"""Converts rows of the OpenTelemetry tables in Unity Catalog into MLflow traces.

The rows are those that databricks-agents 1.13.0 writes (`databricks.migrations`). The result equals the trace that
MLflow 3.17.2 builds from spans received by OTLP (`Span.from_otel_proto`, `translate_span_when_storing`,
`SqlAlchemyStore.log_spans`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.sources.entities import TableAssessment, TableSpan, in_order, milliseconds
from monitoring_pipeline.text import json_or_text

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, Trace, TraceState
    from mlflow.entities.trace_location import TraceLocation
    from mlflow.tracing.utils import SpanAggregationNode

# Keys of an annotation's metadata that hold fields of the assessment.
SOURCE_TYPE, SOURCE_ID = "mlflow.source.source_type", "mlflow.source.source_id"
ERROR_CODE, ERROR_MESSAGE = "mlflow.error.error_code", "mlflow.error.error_message"
STACK_TRACE = "mlflow.error.stack_trace"
SPAN_ID, OVERRIDES, VALID = "mlflow.span_id", "mlflow.overrides", "mlflow.valid"
FORMAT = "mlflow.expectation.serialization_format"
FIELDS = {SOURCE_TYPE, SOURCE_ID, ERROR_CODE, ERROR_MESSAGE, STACK_TRACE, SPAN_ID, OVERRIDES, VALID, FORMAT}


def trace_id_prefix(place: str | None) -> str:
    """Return the part of MLflow's trace id before the OpenTelemetry id; `place` is as in `build_trace`."""
    return "tr-" if place is None else f"trace:/{place}/"


def build_trace(row: dict[str, Any], place: str | None, experiment_id: str | None) -> Trace:
    """Return the trace of a row; `place` is the part of trace ids that names the tables, None for tables in a folder.

    Raises:
        Exception: any error of a malformed row; the caller puts the trace into quarantine.
    """
    from mlflow.entities import Trace, TraceData, TraceInfo

    spans = _spans(row["trace_id"], [json.loads(text) for text in sorted(row["spans"])])
    annotations = [json.loads(text) for text in row["annotations"] or []]
    annotations.sort(key=lambda annotation: (annotation.get("created_at") or 0, annotation["annotation_id"]))
    fields = _trace_fields(annotations)
    started_ms = min(span.start_time_ns for span in spans) // 10**6
    ends_ns = [span.end_time_ns for span in spans if span.end_time_ns]
    info = TraceInfo(
        trace_id=row["trace_id"],
        trace_location=_location(place, experiment_id),
        request_time=started_ms,
        state=_state(spans),
        request_preview=fields.get("request_preview"),
        response_preview=fields.get("response_preview"),
        client_request_id=fields.get("client_request_id"),
        execution_duration=max(ends_ns) // 10**6 - started_ms if ends_ns else None,
        trace_metadata=_metadata_of(spans) | _run(annotations) | (fields.get("trace_metadata") or {}),
        tags=_tags_of(spans) | {tag["name"]: _text(tag) for tag in annotations if tag["annotation_type"] == "TAG"},
        assessments=[
            _assessment(annotation, row["trace_id"])
            for annotation in annotations
            if annotation["annotation_type"] in ("FEEDBACK", "EXPECTATION")
        ],
    )
    return Trace(info, TraceData(spans))


def _spans(trace_id: str, rows: list[dict[str, Any]]) -> list[Span]:
    """The spans, each once: the row with the latest end wins."""
    latest = {row["span_id"]: row for row in sorted(rows, key=lambda row: row.get("end_time_unix_nano") or 0)}
    return in_order([_span(trace_id, row) for row in latest.values()])


def _span(trace_id: str, row: dict[str, Any]) -> Span:
    from mlflow.entities import Span
    from mlflow.tracing.otel.translation import translate_span_when_storing
    from mlflow.tracing.utils import dump_span_attribute_value

    status = row.get("status") or {}
    span = TableSpan(
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
                "trace_id": trace_id_prefix(None) + link["trace_id"],
                "span_id": link["span_id"],
                "attributes": _values(link.get("attributes")) or None,
            }
            for link in row.get("links") or []
        ],
    ).to_mlflow()
    return Span.from_dict(translate_span_when_storing(span))


def _state(spans: list[Span]) -> TraceState:
    from mlflow.entities import SpanStatusCode, TraceState

    root = spans[0]
    if root.parent_id is not None:  # a root span is written when it ends
        return TraceState.IN_PROGRESS
    return TraceState.ERROR if root.status.status_code == SpanStatusCode.ERROR else TraceState.OK


def _metadata_of(spans: list[Span]) -> dict[str, str]:
    """The metadata that MLflow derives from spans if the client sent none: user, session, tokens and cost."""
    from mlflow.tracing.constant import GenAiSemconvKey, SpanAttributeKey, TraceMetadataKey
    from mlflow.tracing.utils import aggregate_cost_from_span_nodes, aggregate_usage_from_span_nodes

    sessions = (SpanAttributeKey.SESSION_ID, GenAiSemconvKey.CONVERSATION_ID)
    derived = {
        TraceMetadataKey.TRACE_USER: _first(spans, SpanAttributeKey.USER_ID),
        TraceMetadataKey.TRACE_SESSION: _first(spans, *sessions),
        TraceMetadataKey.TOKEN_USAGE: aggregate_usage_from_span_nodes(_nodes(spans, SpanAttributeKey.CHAT_USAGE)),
        TraceMetadataKey.COST: aggregate_cost_from_span_nodes(_nodes(spans, SpanAttributeKey.LLM_COST)),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in derived.items() if value}


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
    """The tags that MLflow's OTLP exporter writes into the root span's attributes."""
    from mlflow.tracing.constant import SpanAttributeKey

    prefix = SpanAttributeKey.TRACE_TAG_PREFIX
    if spans[0].parent_id is not None:
        return {}
    attributes = spans[0].attributes
    return {key.removeprefix(prefix): str(value) for key, value in attributes.items() if key.startswith(prefix)}


def _trace_fields(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """The trace fields that the client set: client_request_id, previews and trace_metadata."""
    values = [_value(annotation) for annotation in annotations if annotation["annotation_type"] == "METADATA"]
    return values[-1] if values else {}


def _run(annotations: list[dict[str, Any]]) -> dict[str, str]:
    from mlflow.tracing.constant import TraceMetadataKey

    runs = [_text(annotation) for annotation in annotations if annotation["annotation_type"] == "RUN_LINK"]
    return {TraceMetadataKey.SOURCE_RUN: runs[0]} if runs else {}


def _assessment(annotation: dict[str, Any], trace_id: str) -> Assessment:
    fields = json_or_text(annotation.get("metadata")) or {}
    value = _value(annotation)
    return TableAssessment(
        is_expectation=annotation["annotation_type"] == "EXPECTATION",
        value=json_or_text(value) if fields.get(FORMAT) and isinstance(value, str) else value,
        trace_id=trace_id,
        assessment_id=annotation["annotation_id"],
        name=annotation["name"],
        source_type=fields.get(SOURCE_TYPE),
        source_id=fields.get(SOURCE_ID),
        rationale=annotation.get("comment"),
        error_code=fields.get(ERROR_CODE),
        error_message=fields.get(ERROR_MESSAGE),
        stack_trace=fields.get(STACK_TRACE),
        span_id=fields.get(SPAN_ID),
        created_ms=milliseconds(annotation["created_at"]),
        updated_ms=milliseconds(annotation.get("updated_at") or annotation["created_at"]),
        metadata={key: str(value) for key, value in fields.items() if key not in FIELDS},
        overrides=fields.get(OVERRIDES),
        is_valid=str(fields.get(VALID)).lower() != "false",
    ).to_mlflow()


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
    return json_or_text(annotation.get("value"))


def _text(annotation: dict[str, Any]) -> str:
    value = _value(annotation)
    return value if isinstance(value, str) else annotation.get("value") or ""


def _values(attributes: str | dict[str, str] | None) -> dict[str, Any]:
    """The attributes of a VARIANT column, read as JSON, or of a map of texts."""
    if isinstance(attributes, str):
        return json.loads(attributes)
    return {key: json_or_text(text) for key, text in (attributes or {}).items()}
