"""Traces for tests of judges, budgets and sessions, each with a different question and answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from mlflow.entities import Span, Trace, TraceInfo, TraceState
from mlflow.entities.trace_data import TraceData
from mlflow.entities.trace_location import TraceLocation

from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.sources.stores import START, span_json, trace_id


def made_trace(
    number: int,
    started: datetime | None = None,
    session: str | None = None,
    answer: str | None = None,
    retrieved: Iterable[list[str]] = (),
    state: TraceState = TraceState.OK,
    **info: Any,
) -> Trace:
    """Trace `number`: question and answer carry the number; one span of 5 ms, `number` seconds after START.

    Each entry of `retrieved` holds the chunks of a RETRIEVER span below it.
    """
    started = started or START + timedelta(seconds=number)
    question, text = json.dumps({"question": f"question {number}"}), json.dumps(answer or f"answer {number}.")
    attributes = {"mlflow.spanInputs": question, "mlflow.spanOutputs": text, "mlflow.spanType": '"AGENT"'}
    metadata = {"mlflow.trace.session": session} if session else {}
    spans = [span_json(number, started=started, attributes=attributes)]
    for index, chunks in enumerate(retrieved, 2):
        pages = json.dumps([{"page_content": chunk} for chunk in chunks])
        found = {"mlflow.spanType": '"RETRIEVER"', "mlflow.spanInputs": question, "mlflow.spanOutputs": pages}
        spans.append(span_json(number, index, parent=1, started=started, attributes=found))
    return Trace(
        TraceInfo(
            trace_id(number),
            TraceLocation.from_experiment_id("1"),
            round(started.timestamp() * 1000),
            state,
            execution_duration=5,
            request_preview=question,
            response_preview=text,
            trace_metadata=metadata,
            **info,
        ),
        TraceData([Span.from_dict(span) for span in spans]),
    )


def archive_traces(lake: LakeResource, window: Window, traces: Iterable[Trace]) -> None:
    """Archive the traces, all of which start in `window`, in the lake."""
    archive(lake, window, [[*traces]], {})


def number_in(prompt: str) -> int:
    """The number of the trace in a judge's prompt."""
    found = re.search(r"answer (\d+)\.", prompt)
    assert found
    return int(found[1])
