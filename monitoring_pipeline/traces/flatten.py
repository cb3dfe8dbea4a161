"""Flattens a trace into a row of `agent_traces`."""

from __future__ import annotations

import binascii
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.text import json_or_text
from monitoring_pipeline.windows import EPOCH, floor_hour, to_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace, TraceInfo

SORTED = json.JSONEncoder(sort_keys=True)
# Span attributes that have a column, so that they are left out of the span's metadata.
SPAN_COLUMNS = {"mlflow.traceRequestId", "mlflow.spanType", "mlflow.spanInputs", "mlflow.spanOutputs"}


@dataclass(frozen=True)
class FlatTrace:
    """A trace as a row of `agent_traces` (without `created_at`); `info` returns its MLflow TraceInfo."""

    row: dict[str, Any]
    info: Callable[[], TraceInfo]


@dataclass(frozen=True)
class UnreadableTrace:
    """A trace of the source that cannot be read: `raw` is its known content, `reason` the error."""

    trace_id: str
    started: datetime
    reason: str
    raw: str

    @property
    def request_time(self) -> int:
        """`started` in milliseconds since 1970, as in MLflow's TraceInfo."""
        return to_milliseconds(self.started)


def flatten(trace: Trace, archived_at: datetime) -> dict[str, Any]:
    """Return the trace as a row of `agent_traces` (without `date`) with `created_at` = `archived_at`.

    Raises:
        Exception: any error of a malformed trace; the caller puts it into quarantine.
    """
    from mlflow.tracing.utils import TraceJSONEncoder

    body = trace.to_dict()
    data = json.dumps(body["data"], cls=TraceJSONEncoder)
    return _row(body["info"], json.loads(data)["spans"], data) | {"created_at": archived_at}


def flatten_parts(info: dict[str, Any], spans: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row of `agent_traces` (without `date` and `created_at`) from the parts of a trace's JSON.

    `info` has the form of MLflow's `TraceInfo.to_dict`, each span the form of `Span.to_dict`.

    Raises:
        Exception: any error of malformed parts.
    """
    return _row(info, spans, json.dumps({"spans": spans}))


def encodable(text: str) -> str:
    """Return the text with characters that UTF-8 cannot encode, such as lone surrogates, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _row(info: dict[str, Any], spans: list[dict[str, Any]], data_json: str) -> dict[str, Any]:
    # Protocol buffers order a map differently in every process; the same trace must result in the same text.
    info_json = SORTED.encode(info)
    info = json.loads(info_json)
    trace_json = f'{{"info": {info_json}, "data": {data_json}}}'
    tags, metadata = _texts(info.get("tags")), _texts(info.get("trace_metadata"))
    started = datetime.fromisoformat(info["request_time"]).astimezone(UTC)
    flat_spans = [_span(span) for span in spans]
    root = next((row for row, span in zip(flat_spans, spans, strict=True) if not span.get("parent_span_id")), {})
    usage = _json_object(metadata.get("mlflow.trace.tokenUsage"))
    cost = _json_object(metadata.get("mlflow.trace.cost"))
    return {
        "trace_id": info["trace_id"],
        "experiment_id": info["trace_location"].get("mlflow_experiment", {}).get("experiment_id"),
        "run_id": metadata.get("mlflow.sourceRun"),
        "trace_info": {"request_id": info["trace_id"], "timestamp": started, "status": info["state"]},
        "spans": flat_spans,
        "trace_hour": floor_hour(started),
        "trace_name": tags.get("mlflow.traceName"),
        "user_id": metadata.get("mlflow.trace.user"),
        "session_id": metadata.get("mlflow.trace.session"),
        "request": root.get("inputs") or info.get("request_preview"),
        "response": root.get("outputs") or info.get("response_preview"),
        "duration_ms": _number(info.get("execution_duration_ms")),
        "input_tokens": _whole(usage.get("input_tokens")),
        "output_tokens": _whole(usage.get("output_tokens")),
        "total_tokens": _whole(usage.get("total_tokens")),
        "cost_usd": _number(cost.get("total_cost")),
        "tags": tags,
        "metadata": metadata,
        "assessments": [_assessment(assessment) for assessment in info.get("assessments", [])],
        "trace_json": trace_json,
        "client_request_id": info.get("client_request_id"),
        "content_digest": hashlib.sha256(trace_json.encode("utf-8", "surrogatepass")).hexdigest(),
    }


def _span(span: dict[str, Any]) -> dict[str, Any]:
    tags, metadata, attributes = {}, {}, {}
    for key, value in (span.get("attributes") or {}).items():
        place = attributes if key in SPAN_COLUMNS else metadata if key.startswith("mlflow.") else tags
        place[key] = value if isinstance(value, str) else json.dumps(value)
    status = span.get("status") or {}
    return {
        "span_id": _hex_id(span.get("span_id")),
        "name": span.get("name"),
        "span_type": _unquoted(attributes.get("mlflow.spanType")) or "UNKNOWN",
        "start_time": _time(span.get("start_time_unix_nano")),
        "end_time": _time(span.get("end_time_unix_nano")),
        "status": str(status.get("code") or "UNSET").removeprefix("STATUS_CODE_"),
        "inputs": attributes.get("mlflow.spanInputs"),
        "outputs": attributes.get("mlflow.spanOutputs"),
        "tags": tags,
        "metadata": metadata,
        "parent_id": _hex_id(span.get("parent_span_id")),
        "status_message": status.get("message") or None,
        "events": [
            {
                "name": event.get("name"),
                "timestamp": _time(event.get("time_unix_nano")),
                "attributes": _texts(event.get("attributes")),
            }
            for event in span.get("events") or []
        ],
    }


def _assessment(assessment: dict[str, Any]) -> dict[str, Any]:
    source = assessment.get("source") or {}
    kind = next((kind for kind in ("feedback", "expectation", "issue") if kind in assessment), None)
    body = assessment.get(kind) or {} if kind else {}
    error = body.get("error") or {}
    return {
        "assessment_id": assessment.get("assessment_id"),
        "name": assessment.get("assessment_name"),
        "kind": kind,
        "value": _assessed_value(body),
        "source_type": source.get("source_type"),
        "source_id": source.get("source_id"),
        "rationale": assessment.get("rationale"),
        "error_code": error.get("error_code"),
        "error_message": error.get("error_message"),
        "span_id": assessment.get("span_id"),
        "create_time": _iso_time(assessment.get("create_time")),
        "last_update_time": _iso_time(assessment.get("last_update_time")),
        "metadata": _texts(assessment.get("metadata")),
    }


def _assessed_value(body: dict[str, Any]) -> str | None:
    if "serialized_value" in body:
        return body["serialized_value"]["value"]
    return json.dumps(body["value"]) if "value" in body else None


def _texts(mapping: dict[str, Any] | None) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in (mapping or {}).items()}


def _unquoted(text: str | None) -> str | None:
    """The content of a JSON string; any other text unchanged."""
    if text is None:
        return None
    if (within := text[1:-1]).isidentifier() and text == f'"{within}"':  # the usual case; parsing takes longer
        return within
    value = json_or_text(text)
    return value if isinstance(value, str) else text


def _json_object(text: str | None) -> dict[str, Any]:
    value = json_or_text(text)
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and abs(number) < 2**63 else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _time(nanoseconds: int | None) -> datetime | None:
    # Microseconds, the precision of Spark timestamps; trace_json keeps the nanoseconds. Zero means unknown.
    return EPOCH + timedelta(microseconds=nanoseconds // 1000) if nanoseconds else None


def _iso_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _hex_id(encoded: str | None) -> str | None:
    """A span id as 16 hexadecimal digits, as MLflow shows it. In JSON it is base64, except in MLflow 3.5.0."""
    if not encoded or len(encoded) == 16:
        return encoded or None
    return binascii.a2b_base64(encoded).hex()
