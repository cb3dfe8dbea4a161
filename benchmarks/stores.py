"""Makes MLflow stores of many traces: a few traces of the sample agent, each copied under new ids and times."""

from __future__ import annotations

import base64
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

EXPERIMENT = "agent"
START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 7
SPANS = 4
MODELS = 40  # traces that are copied
KEYS = {
    "trace_info": "request_id",
    "trace_tags": "request_id",
    "trace_request_metadata": "request_id",
    "spans": "trace_id",
}
MS, NS = 10**6, 1  # units of a time column in nanoseconds
TIMES = {"timestamp_ms": MS, "start_time_unix_nano": NS, "end_time_unix_nano": NS}


def fill_store(folder: Path, traces: int) -> str:
    """Create a SQLite store in `folder` with `traces` traces of four spans over a week; returns its address."""
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

    from monitoring_pipeline.demo.traffic import mlflow_spans, simulate

    folder.mkdir(parents=True, exist_ok=True)
    address = f"sqlite:///{folder / 'mlflow.db'}"
    experiment_id = MlflowClient(address).create_experiment(EXPERIMENT, artifact_location=folder.as_uri())
    simulated = simulate(START + timedelta(hours=2), 2, 20 * MODELS, 7)
    models = [*islice((trace for trace in simulated if len(trace.spans) == SPANS), min(MODELS, traces))]
    TracingClient(address).log_spans(experiment_id, [span for trace in models for span in mlflow_spans(trace)])
    copies = _copies([trace.trace_id for trace in models], traces - len(models))
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("PRAGMA synchronous = OFF")
        for table, key in KEYS.items():
            _copy(database, table, key, copies)
    return address


Copies = list[tuple[str, str, int]]


def _copies(models: list[str], count: int) -> Copies:
    """A model, a new id and a shift in nanoseconds for each copy."""
    chance = random.Random(7)
    week_ns = (DAYS * 24 - 2) * 3600 * 10**9
    return [
        (chance.choice(models), f"tr-{chance.getrandbits(128):032x}", chance.randrange(week_ns // MS) * MS)
        for _ in range(count)
    ]


def _copy(database: sqlite3.Connection, table: str, key: str, copies: Copies) -> None:
    """Copy the rows of the models' traces."""
    cursor = database.execute(f"SELECT * FROM {table}")  # noqa: S608 - the name comes from this file
    columns = [column[0] for column in cursor.description]
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for values in cursor.fetchall():
        row = dict(zip(columns, values, strict=True))
        rows_of.setdefault(row[key], []).append(row)
    # SQLite computes spans.duration_ns itself.
    kept = [column for column in columns if column != "duration_ns"]
    new = (
        _copied(row, model, trace_id, shift_ns)
        for model, trace_id, shift_ns in copies
        for row in rows_of.get(model, ())
    )
    _insert(database, table, kept, ([row[column] for column in kept] for row in new))


def _insert(database: sqlite3.Connection, table: str, columns: list[str], rows: Iterator[list[Any]]) -> None:
    marks = ", ".join("?" * len(columns))
    database.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)  # noqa: S608


def _copied(row: dict[str, Any], model: str, trace_id: str, shift_ns: int) -> dict[str, Any]:
    """The row with another trace id and later times, also within its texts."""
    replaced = {model: trace_id, _base64(model): _base64(trace_id)}
    changed = {name: row[name] + shift_ns // unit for name, unit in TIMES.items() if name in row}
    replaced |= {str(row[name]): str(value) for name, value in changed.items() if name != "timestamp_ms"}
    copy = {**row, **changed}
    for name, value in row.items():
        if isinstance(value, str):
            for old, new in replaced.items():
                value = value.replace(old, new)
            copy[name] = value
    return copy


def _base64(trace_id: str) -> str:
    """How a span's content writes the trace's id."""
    return base64.b64encode(bytes.fromhex(trace_id.removeprefix("tr-"))).decode()
