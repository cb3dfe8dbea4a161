"""Converts a row of the table to which Databricks archives an experiment's traces into an MLflow trace.

Databricks publishes no schema for the table, and tables in use differ: `TRACE`, `SPAN`, `EVENT` and `ASSESSMENT` list
the supported columns. Values of attributes and assessments may be JSON or plain text; a text that is valid JSON is
parsed as JSON.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.sources.entities import TableAssessment, TableSpan, in_order, milliseconds
from monitoring_pipeline.text import json_or_text
from monitoring_pipeline.windows import nanoseconds

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, Trace
    from mlflow.entities.trace_location import TraceLocation

# MLflow's name of a value -> the columns that may hold it; the first one with a value counts.
Spellings = dict[str, tuple[str, ...]]

TRACE: Spellings = {
    "trace_id": ("trace_id", "request_id"),
    "request_time": ("request_time", "timestamp_ms", "timestamp"),
    "state": ("state", "status"),
    "execution_duration": ("execution_duration_ms", "execution_duration", "execution_time_ms"),
    "request_preview": ("request_preview", "request"),
    "response_preview": ("response_preview", "response"),
    "client_request_id": ("client_request_id",),
    "trace_metadata": ("trace_metadata", "request_metadata"),
    "tags": ("tags",),
    "trace_location": ("trace_location",),
    "experiment_id": ("trace_location.mlflow_experiment.experiment_id", "experiment_id"),
    "spans": ("spans",),
    "assessments": ("assessments",),
}
SPAN: Spellings = {
    "span_id": ("span_id",),
    "parent_id": ("parent_id", "parent_span_id"),
    "name": ("name",),
    "start_time": ("start_time", "start_time_ns", "start_time_unix_nano"),
    "end_time": ("end_time", "end_time_ns", "end_time_unix_nano"),
    "status_code": ("status_code", "status.status_code", "status.code", "status"),
    "status_message": ("status_message", "status.message", "status.description"),
    "attributes": ("attributes",),
    "events": ("events",),
    "links": ("links",),
}
EVENT: Spellings = {
    "name": ("name",),
    "timestamp": ("timestamp", "time_unix_nano", "timestamp_ns"),
    "attributes": ("attributes",),
}
ASSESSMENT: Spellings = {
    "assessment_id": ("assessment_id",),
    "name": ("assessment_name", "name"),
    "source_type": ("source.source_type",),
    "source_id": ("source.source_id",),
    "create_time": ("create_time", "create_time_ms"),
    "last_update_time": ("last_update_time", "last_update_time_ms"),
    "expectation": ("expectation.value", "expectation.serialized_value.value"),
    "feedback": ("feedback.value",),
    "error_code": ("feedback.error.error_code", "error.error_code"),
    "error_message": ("feedback.error.error_message", "error.error_message"),
    "stack_trace": ("feedback.error.stack_trace", "error.stack_trace"),
    "rationale": ("rationale",),
    "metadata": ("metadata",),
    "span_id": ("span_id",),
    "overrides": ("overrides",),
    "valid": ("valid",),
}


def build_trace(row: dict[str, Any], experiment_id: str | None) -> Trace:
    """Return the trace of a row; `experiment_id` applies if the row has no experiment.

    Raises:
        Exception: any error of a malformed row; the caller puts the row into quarantine.
    """
    from mlflow.entities import Trace, TraceData, TraceInfo, TraceState

    trace = _by_mlflows_names(row, TRACE)
    if not trace["trace_id"]:
        raise ValueError("it has no trace_id")
    duration_ms = trace["execution_duration"]
    info = TraceInfo(
        trace_id=trace["trace_id"],
        trace_location=_location(trace, experiment_id),
        request_time=milliseconds(trace["request_time"]),
        state=TraceState(trace["state"]),
        request_preview=trace["request_preview"],
        response_preview=trace["response_preview"],
        client_request_id=trace["client_request_id"],
        # NaN stands for no value in a table that pandas has written.
        execution_duration=None if duration_ms is None or not math.isfinite(duration_ms) else round(duration_ms),
        trace_metadata=_mapping(trace["trace_metadata"]),
        tags=_mapping(trace["tags"]),
        assessments=[_assessment(entry, trace["trace_id"]) for entry in _from_json(trace["assessments"]) or []],
    )
    spans = [_span(span, trace["trace_id"]) for span in _from_json(trace["spans"]) or []]
    return Trace(info, TraceData(in_order(spans)))


def _location(trace: dict[str, Any], experiment_id: str | None) -> TraceLocation:
    from mlflow.entities.trace_location import TraceLocation, TraceLocationType

    location = {key: value for key, value in (trace["trace_location"] or {}).items() if value}
    if len(location) > 1:  # a type and its fields, not the type alone
        return TraceLocation.from_dict(location)
    if experiment_id := trace["experiment_id"] or experiment_id:
        return TraceLocation.from_experiment_id(experiment_id)
    return TraceLocation(TraceLocationType.TRACE_LOCATION_TYPE_UNSPECIFIED)


def _span(row: dict[str, Any], trace_id: str) -> Span:
    span = _by_mlflows_names(row, SPAN)
    return TableSpan(
        trace_id=trace_id,
        span_id=span["span_id"],
        parent_id=span["parent_id"],
        name=span["name"],
        start_ns=nanoseconds(span["start_time"]),
        end_ns=nanoseconds(span["end_time"]) if span["end_time"] else None,
        status_code=span["status_code"],
        status_message=span["status_message"],
        attributes={key: _as_json(value) for key, value in (_from_json(span["attributes"]) or {}).items()},
        events=[_event(event) for event in _from_json(span["events"]) or []],
        links=_from_json(span["links"]) or [],
    ).to_mlflow()


def _event(row: dict[str, Any]) -> dict[str, Any]:
    event = _by_mlflows_names(row, EVENT)
    return {
        "name": event["name"],
        "time_unix_nano": nanoseconds(event["timestamp"]),
        "attributes": {
            key: json_or_text(value) if isinstance(value, str) else value
            for key, value in (_from_json(event["attributes"]) or {}).items()
        },
    }


def _assessment(row: dict[str, Any], trace_id: str) -> Assessment:
    entry = _by_mlflows_names(row, ASSESSMENT)
    is_expectation = entry["expectation"] is not None
    return TableAssessment(
        is_expectation=is_expectation,
        value=json_or_text(entry["expectation"] if is_expectation else entry["feedback"]),
        trace_id=trace_id,
        assessment_id=entry["assessment_id"],
        name=entry["name"],
        source_type=entry["source_type"],
        source_id=entry["source_id"],
        rationale=entry["rationale"],
        error_code=entry["error_code"],
        error_message=entry["error_message"],
        stack_trace=entry["stack_trace"],
        span_id=entry["span_id"],
        created_ms=milliseconds(entry["create_time"]),
        updated_ms=milliseconds(entry["last_update_time"] or entry["create_time"]),
        metadata=_mapping(entry["metadata"]),
        overrides=entry["overrides"],
        is_valid=entry["valid"] is not False,
    ).to_mlflow()


def _as_json(value: Any) -> str:
    """The value as MLflow stores it in a span's attributes: text that is valid JSON stays unchanged."""
    from mlflow.tracing.utils import dump_span_attribute_value

    if isinstance(value, str) and json_or_text(value) is not value:
        return value
    return dump_span_attribute_value(value)


def _by_mlflows_names(row: dict[str, Any], spellings: Spellings) -> dict[str, Any]:
    """The values of the row by the names of `spellings`; None if missing."""
    return {
        name: next((value for path in paths if (value := _at(row, path)) is not None), None)
        for name, paths in spellings.items()
    }


def _at(row: Any, path: str) -> Any:
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _from_json(value: Any) -> Any:
    """The value of a nested column, which some tables store as JSON in a text or VARIANT column."""
    return json.loads(value) if isinstance(value, str) else value


def _mapping(mapping: Any) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (_from_json(mapping) or {}).items()
    }
