"""MLflow stores for tests, and spans and traces to put into them."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Assessment, Span, Trace, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.sources.mlflow import MlflowSource
from monitoring_pipeline.windows import Window

START = datetime(2026, 1, 1, 5, tzinfo=UTC)
START_MS = 1_767_243_600_000
HOUR = Window(START, START + timedelta(hours=1))


def trace_id(number: int) -> str:
    return f"tr-{number:032x}"


def span_json(
    number: int, index: int = 1, parent: int | None = None, started: datetime | None = None, **changes: Any
) -> dict[str, Any]:
    """Span `index` of trace `number` as the JSON that MLflow stores; it lasts 5 ms. `attributes` are added to it."""
    start_ns = _milliseconds(started or START + timedelta(seconds=number)) * 1_000_000
    attributes = {"mlflow.traceRequestId": json.dumps(trace_id(number)), "mlflow.spanType": '"TOOL"'}
    return {
        "trace_id": base64.b64encode(number.to_bytes(16, "big")).decode(),
        "span_id": span_id(index),
        "parent_span_id": span_id(parent) if parent else None,
        "name": f"span {index}",
        "start_time_unix_nano": start_ns,
        "end_time_unix_nano": start_ns + 5_000_000,
        "events": [],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": attributes | changes.pop("attributes", {}),
        "links": [],
        **changes,
    }


def span_id(index: int) -> str:
    return base64.b64encode(index.to_bytes(8, "big")).decode()


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


@dataclass(frozen=True)
class Store:
    """A SQLite store with one experiment. Trace `number` starts that many seconds after START."""

    file: Path
    client: TracingClient
    experiment_id: str

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.file}"

    @classmethod
    def open(cls, file: Path) -> Store:
        uri = f"sqlite:///{file}"
        experiment = MlflowClient(uri).get_experiment_by_name("made")
        assert experiment is not None
        return cls(file, TracingClient(uri), experiment.experiment_id)

    @classmethod
    def create(cls, folder: Path) -> Store:
        file = folder / "mlflow.db"
        artifacts = (folder / "artifacts").as_uri()
        MlflowClient(f"sqlite:///{file}").create_experiment("made", artifact_location=artifacts)
        return cls.open(file)

    def log(
        self,
        number: int,
        spans: Iterable[dict[str, Any]] | None = None,
        assessments: Iterable[Assessment] = (),
        state: TraceState = TraceState.OK,
        started: datetime | None = None,
        duration_ms: int | None = 5,
        **info: Any,
    ) -> str:
        """Log trace `number`, with one plain span unless `spans` are given; returns its id."""
        started = started or START + timedelta(seconds=number)
        location = TraceLocation.from_experiment_id(self.experiment_id)
        self.client.start_trace(
            TraceInfo(trace_id(number), location, _milliseconds(started), state, execution_duration=duration_ms, **info)
        )
        # MLflow moves a trace to the start of its earliest span.
        logged = [span_json(number, started=started)] if spans is None else spans
        self.client.log_spans(self.experiment_id, [Span.from_dict(span) for span in logged])
        for assessment in assessments:
            self.client.log_assessment(trace_id(number), assessment)
        return trace_id(number)

    def sql(self, statement: str, *rows: tuple[Any, ...]) -> None:
        """Change the database without MLflow."""
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.executemany(statement, rows or [()])

    def store_spans(self, number: int, *contents: str) -> None:
        """Replace the stored spans of the logged trace `number` by `contents`, unchecked."""
        self.sql("DELETE FROM spans WHERE trace_id = ?", (trace_id(number),))
        self.sql(
            "INSERT INTO spans (trace_id, experiment_id, span_id, status, start_time_unix_nano, content)"
            " VALUES (?, ?, ?, 'OK', ?, ?)",
            *(
                (trace_id(number), self.experiment_id, f"{index:016x}", START_MS * 1_000_000 + index, content)
                for index, content in enumerate(contents)
            ),
        )


def traces_of(tracking: TrackingResource, window: Window) -> list[Trace]:
    """The traces that the source `mlflow` reads, without unreadable ones."""
    batches = MlflowSource(tracking, tracking.experiment_names()).read(window)
    return [trace for batch in batches for trace in batch if isinstance(trace, Trace)]


class Faulty:
    """A client and its store in one: calls named in `fails` get no response, all others go to the store."""

    def __init__(self, client: TracingClient, *fails: str):
        self.client, self.fails = client, set(fails)
        self.store = self

    def __getattr__(self, name: str) -> Any:
        return no_answer if name in self.fails else getattr(self.client.store, name)


def no_answer(*arguments: Any, **named: Any) -> None:
    """A call to a source that does not answer."""
    raise MlflowException("no answer")
