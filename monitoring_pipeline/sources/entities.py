"""Values of trace tables as the parts of MLflow's trace JSON."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span


def nanoseconds(time: int) -> int:
    """A time since 1970, whose unit (ms, us or ns) its size tells: they are distinct from 1973 to 5138."""
    if time < 10**14:
        return time * 10**6
    return time * 1000 if time < 10**17 else time


def milliseconds(time: int) -> int:
    """As `nanoseconds`, in whole milliseconds."""
    return nanoseconds(time) // 10**6


def value_of(text: str | None) -> Any:
    """The value of a text that may or may not be JSON."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def span_of(
    trace_id: str,
    span_id: str,
    parent_id: str | None,
    name: str | None,
    start_ns: int | None,
    end_ns: int | None,
    status_code: str | None,
    status_message: str | None,
    attributes: dict[str, str],
    events: list[dict[str, Any]],
    links: list[dict[str, Any]],
) -> Span:
    """MLflow's span; ids are hexadecimal, `attributes` JSON.

    Raises:
        MlflowException: what is given is no span.
    """
    from mlflow.entities import Span
    from mlflow.tracing.utils import parse_trace_id_v4

    otel_trace_id = (parse_trace_id_v4(trace_id)[1] or "").removeprefix("tr-")
    code = (status_code or "UNSET").upper().removeprefix("STATUS_CODE_")
    return Span.from_dict(
        {
            "trace_id": _base64(otel_trace_id),
            "span_id": _base64(span_id),
            "parent_span_id": _base64(parent_id) if parent_id else None,
            "name": name,
            "start_time_unix_nano": start_ns,
            "end_time_unix_nano": end_ns,
            "status": {"code": f"STATUS_CODE_{code}", "message": status_message or ""},
            "attributes": {**attributes, "mlflow.traceRequestId": json.dumps(trace_id)},
            "events": events,
            "links": links,
        }
    )


def assessment_of(
    is_expectation: bool,
    value: Any,
    trace_id: str,
    assessment_id: str | None,
    name: str,
    source_type: str | None,
    source_id: str | None,
    rationale: str | None,
    error_code: str | None,
    error_message: str | None,
    stack_trace: str | None,
    span_id: str | None,
    created_ms: int,
    updated_ms: int,
    metadata: dict[str, str],
    overrides: str | None,
    is_valid: bool,
) -> Assessment:
    """MLflow's expectation or feedback."""
    from mlflow.entities import AssessmentError, AssessmentSource, Expectation, Feedback

    common: dict[str, Any] = {
        "name": name,
        "source": AssessmentSource(source_type or "SOURCE_TYPE_UNSPECIFIED", source_id),
        "trace_id": trace_id,
        "metadata": metadata or None,
        "span_id": span_id,
        "create_time_ms": created_ms,
        "last_update_time_ms": updated_ms,
    }
    if is_expectation:
        assessment: Assessment = Expectation(value=value, **common)
    else:
        failed = error_code is not None or error_message is not None
        error = AssessmentError(error_code or "", error_message, stack_trace) if failed else None
        assessment = Feedback(value=value, error=error, **common)
    assessment.assessment_id = assessment_id
    assessment.rationale = rationale
    assessment.overrides = overrides
    assessment.valid = is_valid
    return assessment


def in_order(spans: list[Span]) -> list[Span]:
    """The spans as MLflow orders a trace's: those without a parent first, then by start and id."""
    return sorted(spans, key=lambda span: (span.parent_id is not None, span.start_time_ns, span.span_id))


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
