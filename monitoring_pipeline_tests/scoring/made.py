"""Traces made for the tests of judges, budgets and sessions: each with a question and an answer of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from mlflow.entities import Span, Trace, TraceInfo, TraceState
from mlflow.entities.trace_data import TraceData
from mlflow.entities.trace_location import TraceLocation

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.traces.archive import archive
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.traces.stores import START, span_json, trace_id


def made_trace(
    number: int, started: datetime | None = None, session: str | None = None, answer: str | None = None, **info: Any
) -> Trace:
    """Trace `number`: question and answer carry the number; one span of 5 ms, `number` seconds after START."""
    started = started or START + timedelta(seconds=number)
    question, text = json.dumps({"question": f"question {number}"}), json.dumps(answer or f"answer {number}.")
    attributes = {"mlflow.spanInputs": question, "mlflow.spanOutputs": text, "mlflow.spanType": '"AGENT"'}
    metadata = {"mlflow.trace.session": session} if session else {}
    return Trace(
        TraceInfo(
            trace_id(number),
            TraceLocation.from_experiment_id("1"),
            round(started.timestamp() * 1000),
            TraceState.OK,
            execution_duration=5,
            request_preview=question,
            response_preview=text,
            trace_metadata=metadata,
            **info,
        ),
        TraceData([Span.from_dict(span_json(number, started=started, attributes=attributes))]),
    )


def archive_traces(lake: LakeResource, window: Window, traces: Iterable[Trace]) -> None:
    """Put the traces, all of which start in `window`, into the lake's archive."""
    archive(lake, window, [[*traces]], {})
