"""Flattens a trace into a row of `agent_traces`."""

from __future__ import annotations

import binascii
import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from monitoring_pipeline.text import json_or_text, parse_json, plain
from monitoring_pipeline.traces.claims import LATEST, Claims
from monitoring_pipeline.traces.parts import SORTED, part_digests
from monitoring_pipeline.traces.usage import model_calls, totals
from monitoring_pipeline.windows import floor_hour, from_milliseconds, to_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Trace, TraceInfo

S = TypeVar("S")
# Span attributes that have a column, so that they are left out of the span's metadata.
SPAN_COLUMNS = {"mlflow.traceRequestId", "mlflow.spanType", "mlflow.spanInputs", "mlflow.spanOutputs"}
LIKELY_JSON = re.compile(r'"[^"\\\x00-\x1f]*"|\{(".*)?\}|\[(["{\[].*)?\]', re.DOTALL)

# The mark of an assessment whose value JSON cannot carry: a key of its metadata with the value, and feedback's error.
# In the metadata of a trace the key says what else of it cannot be read.
UNREADABLE_VALUE, UNREADABLE_CODE = "monitoring.unreadable_value", "UNREADABLE_VALUE"


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

    @classmethod
    def of(cls, info: TraceInfo, reason: str) -> UnreadableTrace:
        """The trace with this info, which is all that is known of it."""
        return cls(info.trace_id, from_milliseconds(info.request_time), reason, repr(info))

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

    data = json.dumps(trace.data.to_dict(), cls=TraceJSONEncoder)
    return _row(_info_json(trace.info), parse_json(data)["spans"], data) | {"created_at": archived_at}


def flatten_parts(info: dict[str, Any], spans: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row of `agent_traces` (without `date` and `created_at`) from the parts of a trace's JSON.

    `info` has the form of MLflow's `TraceInfo.to_dict`, each span the form of `Span.to_dict`.

    Raises:
        Exception: any error of malformed parts.
    """
    return _row(info, spans, json.dumps({"spans": spans}))


def topmost(spans: Iterable[S], place: Callable[[S], tuple[str | None, str | None, Any]]) -> S | None:
    """The first span without a parent, else the earliest whose parent the trace does not have: it may never arrive.

    `place` returns a span's id, its parent's id and its start.
    """
    placed = [(span, *place(span)) for span in spans]
    known = {span_id for _, span_id, _, _ in placed}
    roots = (span for span, _, parent_id, _ in placed if parent_id is None)
    orphans = (one for one in placed if one[2] not in known)
    earliest = min(orphans, key=lambda one: one[3], default=(None,))
    return next(roots, earliest[0])


def encodable(text: str) -> str:
    """Return the text with characters that UTF-8 cannot encode, such as lone surrogates, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _row(info: dict[str, Any], spans: list[dict[str, Any]], data_json: str) -> dict[str, Any]:
    respelled = [_in_json(span.get("attributes") or {}) for span in spans]
    if any(respelled):
        data_json = json.dumps({"spans": spans})
    # Protocol buffers order a map differently in every process; the same trace must result in the same text and maps.
    trace_json = f'{{"info": {SORTED.encode(info)}, "data": {data_json}}}'
    tags, metadata = _sorted_texts(info.get("tags")), _sorted_texts(info.get("trace_metadata"))
    started = datetime.fromisoformat(info["request_time"]).astimezone(UTC)
    claims = Claims()
    if UNREADABLE_VALUE in metadata:
        claims.note("trace", metadata[UNREADABLE_VALUE])
    flat_spans = [_span(span, claims) for span in spans]
    attributes = (span.get("attributes") or {} for span in spans)
    calls = model_calls(zip(flat_spans, attributes, strict=True), claims)
    top = topmost(flat_spans, lambda span: (span["span_id"], span["parent_id"], span["start_time"] or LATEST)) or {}
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
        "request": top.get("inputs") or info.get("request_preview"),
        "response": top.get("outputs") or info.get("response_preview"),
        "duration_ms": claims.duration_ms("duration_ms", info.get("execution_duration_ms")),
        **totals(metadata, calls, claims),
        "model_calls": calls,
        "tags": tags,
        "metadata": metadata,
        "assessments": [_assessment(assessment, claims) for assessment in info.get("assessments", [])],
        "trace_json": trace_json,
        "client_request_id": info.get("client_request_id"),
        "content_digest": hashlib.sha256(trace_json.encode("utf-8", "surrogatepass")).hexdigest(),
        "part_digests": part_digests(info, data_json),
        "implausible": claims.implausible,
    }


def _in_json(attributes: dict[str, Any]) -> bool:
    """Write the attributes that are not JSON texts as such, as MLflow's server sends them; returns whether any was.

    OpenTelemetry's SDK, and some of MLflow's own translations, store plain texts and numbers. Of an empty text, 0 or
    false the server sends nothing; here it is kept.
    """
    plain = [key for key, value in attributes.items() if not _is_json(value)]
    for key in plain:
        attributes[key] = json.dumps(attributes[key], ensure_ascii=False)
    return bool(plain)


def _is_json(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if LIKELY_JSON.fullmatch(value):  # nearly all values; parsing takes longer
        return True
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


def _info_json(info: TraceInfo) -> dict[str, Any]:
    """`info.to_dict()`, also with values that protocol buffers cannot carry.

    A duration stays as it is. The value of an assessment is replaced by a mark.
    """
    try:
        return info.to_dict()
    except Exception:  # noqa: BLE001 - protocol buffers raise many kinds; what stays unreadable raises again
        readable = copy.copy(info)
        readable.assessments = [_encodable(assessment) for assessment in info.assessments]
        readable.execution_duration = None
        body = readable.to_dict()
        return body if info.execution_duration is None else {**body, "execution_duration_ms": info.execution_duration}


def _encodable(assessment: Assessment) -> Assessment:
    """The assessment itself, or a copy with a mark if JSON cannot carry its value.

    Feedback gets an error, as without a value it must have one. An expectation gets the value as text.
    """
    from mlflow.entities import AssessmentError
    from mlflow.entities.assessment import ExpectationValue, FeedbackValue

    try:
        assessment.to_dictionary()
        return assessment
    except Exception:
        content = assessment.feedback or assessment.expectation
        if content is None:
            raise
    value = plain(repr(content.value))
    changed = copy.copy(assessment)
    changed.metadata = {**(assessment.metadata or {}), UNREADABLE_VALUE: value}
    if assessment.feedback is not None:
        error = AssessmentError(UNREADABLE_CODE, f"the value {value} cannot be written as JSON")
        changed.feedback = FeedbackValue(value=None, error=error)  # pyright: ignore[reportArgumentType]
    else:
        changed.expectation = ExpectationValue(value)
    return changed


def _span(span: dict[str, Any], claims: Claims) -> dict[str, Any]:
    tags, metadata, attributes = {}, {}, {}
    for key, value in (span.get("attributes") or {}).items():
        place = attributes if key in SPAN_COLUMNS else metadata if key.startswith("mlflow.") else tags
        place[key] = value if isinstance(value, str) else json.dumps(value)
    status = span.get("status") or {}
    code = str(status.get("code") or "UNSET").removeprefix("STATUS_CODE_")
    events = [
        {
            "name": event.get("name"),
            "timestamp": claims.time("event time", event.get("time_unix_nano")),
            "attributes": _texts(event.get("attributes")),
        }
        for event in span.get("events") or []
    ]
    start = claims.time("span start_time", span.get("start_time_unix_nano"))
    end = claims.time("span end_time", span.get("end_time_unix_nano"))
    if start and end and end < start:
        claims.note("span end_time before start_time", end)
        end = None
    return {
        "span_id": _hex_id(span.get("span_id")),
        "name": span.get("name"),
        "span_type": _unquoted(attributes.get("mlflow.spanType")) or "UNKNOWN",
        "start_time": start,
        "end_time": end,
        "status": code,
        "inputs": attributes.get("mlflow.spanInputs"),
        "outputs": attributes.get("mlflow.spanOutputs"),
        "tags": tags,
        "metadata": metadata,
        "parent_id": _hex_id(span.get("parent_span_id")),
        "status_message": status.get("message") or (_exception(events) if code == "ERROR" else None),
        "events": events,
    }


def _exception(events: list[dict[str, Any]]) -> str | None:
    """Type and message of the last exception among a span's events, as OpenTelemetry records them."""
    for event in reversed(events):
        kind, message = (event["attributes"].get(f"exception.{part}") for part in ("type", "message"))
        if kind or message:
            return ": ".join(text for text in (kind, message) if text)
    return None


def _assessment(assessment: dict[str, Any], claims: Claims) -> dict[str, Any]:
    source = assessment.get("source") or {}
    kind = next((kind for kind in ("feedback", "expectation", "issue") if kind in assessment), None)
    body = assessment.get(kind) or {} if kind else {}
    error = body.get("error") or {}
    metadata = _sorted_texts(assessment.get("metadata"))
    if UNREADABLE_VALUE in metadata:
        claims.note(f"assessment {assessment.get('assessment_name')}", metadata[UNREADABLE_VALUE])
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
        "metadata": metadata,
    }


def _assessed_value(body: dict[str, Any]) -> str | None:
    if "serialized_value" in body:
        return body["serialized_value"]["value"]
    return SORTED.encode(body["value"]) if "value" in body else None


def _texts(mapping: dict[str, Any] | None) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in (mapping or {}).items()}


def _sorted_texts(mapping: dict[str, Any] | None) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else SORTED.encode(value) for key, value in sorted((mapping or {}).items())
    }


def _unquoted(text: str | None) -> str | None:
    """The content of a JSON string; any other text unchanged."""
    if text is None:
        return None
    if (within := text[1:-1]).isidentifier() and text == f'"{within}"':  # the usual case; parsing takes longer
        return within
    value = json_or_text(text)
    return value if isinstance(value, str) else text


def _iso_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _hex_id(encoded: str | None) -> str | None:
    """A span id as 16 hexadecimal digits, as MLflow shows it. In JSON it is base64, except in MLflow 3.5.0."""
    if not encoded or len(encoded) == 16:
        return encoded or None
    return binascii.a2b_base64(encoded).hex()
