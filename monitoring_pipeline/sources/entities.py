"""Spans and assessments of Databricks tables, and their conversion to MLflow entities."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.windows import nanoseconds

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span


@dataclass
class TableSpan:
    """A span of a table. Ids are hexadecimal except `trace_id`; `attributes` are JSON by name."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str | None
    start_ns: int | None
    end_ns: int | None
    status_code: str | None
    status_message: str | None
    attributes: dict[str, str]
    events: list[dict[str, Any]] = field(default_factory=list)
    links: list[dict[str, Any]] = field(default_factory=list)

    def to_mlflow(self) -> Span:
        """Return the MLflow span.

        Raises:
            MlflowException: the values are not a valid span.
        """
        from mlflow.entities import Span
        from mlflow.tracing.otel.translation import translate_loaded_span
        from mlflow.tracing.utils import parse_trace_id_v4

        otel_trace_id = (parse_trace_id_v4(self.trace_id)[1] or "").removeprefix("tr-")
        code = (self.status_code or "UNSET").upper().removeprefix("STATUS_CODE_")
        span = {
            "trace_id": _base64(otel_trace_id),
            "span_id": _base64(self.span_id),
            "parent_span_id": _base64(self.parent_id) if self.parent_id else None,
            "name": self.name,
            "start_time_unix_nano": self.start_ns,
            "end_time_unix_nano": self.end_ns,
            "status": {"code": f"STATUS_CODE_{code}", "message": self.status_message or ""},
            "attributes": {**self.attributes, "mlflow.traceRequestId": json.dumps(self.trace_id)},
            "events": self.events,
            "links": self.links,
        }
        return Span.from_dict(translate_loaded_span(span))  # finds an unknown type among the other attributes


@dataclass
class TableAssessment:
    """An expectation or feedback of a table. Feedback has an error if it has an error code or message."""

    trace_id: str
    assessment_id: str | None
    name: str
    is_expectation: bool
    value: Any
    created_ms: int
    updated_ms: int
    source_type: str | None = None
    source_id: str | None = None
    rationale: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    stack_trace: str | None = None
    span_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    overrides: str | None = None
    is_valid: bool = True

    def to_mlflow(self) -> Assessment:
        """Return the MLflow expectation or feedback."""
        from mlflow.entities import AssessmentError, AssessmentSource, Expectation, Feedback

        common: dict[str, Any] = {
            "name": self.name,
            "source": AssessmentSource(self.source_type or "SOURCE_TYPE_UNSPECIFIED", self.source_id),
            "trace_id": self.trace_id,
            "metadata": self.metadata or None,
            "span_id": self.span_id,
            "create_time_ms": self.created_ms,
            "last_update_time_ms": self.updated_ms,
        }
        if self.is_expectation:
            assessment: Assessment = Expectation(value=self.value, **common)
        else:
            failed = self.error_code is not None or self.error_message is not None
            error = AssessmentError(self.error_code or "", self.error_message, self.stack_trace) if failed else None
            assessment = Feedback(value=self.value, error=error, **common)
        assessment.assessment_id = self.assessment_id
        assessment.rationale = self.rationale
        assessment.overrides = self.overrides
        assessment.valid = self.is_valid
        return assessment


def milliseconds(time: int) -> int:
    """A time since 1970 in ms, us or ns, in whole milliseconds."""
    return nanoseconds(time) // 10**6


def in_order(spans: list[Span]) -> list[Span]:
    """The spans in MLflow's order within a trace: those without a parent first, then by start and id."""
    return sorted(spans, key=lambda span: (span.parent_id is not None, span.start_time_ns, span.span_id))


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
