"""Measures how long the sensor `new_traces` takes to compare a store with the archive, by the number of traces.

    python benchmarks/sensor_look.py 10000 10000000

Creates a SQLite store for each number, with that many traces spread evenly over a year (without spans, which the sensor
does not read), one in ten assessed, and an empty lake, so that every hour differs. Prints one JSON line per store and
source: the median of five comparisons, each of the latest 48 hours and one older day, and the hours that differ.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Feedback, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation
from mlflow.tracing.client import TracingClient

from monitoring_pipeline.orchestration.new_traces import look
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings, SensorSettings

YEAR = timedelta(days=365)
LOOKS = 5
ASSESSED = 10  # one trace in ten has an assessment


def filled(folder: Path, traces: int, now: datetime) -> str:
    """The address of a store with `traces` copies of one trace over the year before `now`."""
    file = folder / "mlflow.db"
    uri = f"sqlite:///{file}"
    experiment_id = MlflowClient(uri).create_experiment("agent", artifact_location=folder.as_uri())
    client = TracingClient(uri)
    client.start_trace(TraceInfo("tr-0", TraceLocation.from_experiment_id(experiment_id), 0, TraceState.OK))
    client.log_assessment("tr-0", Feedback(name="good", value=True))
    step_ms = YEAR.total_seconds() * 1000 / traces
    start_ms = (now - YEAR).timestamp() * 1000
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("PRAGMA synchronous = OFF")
        _copy(
            database,
            "trace_info",
            (
                (f"tr-{number:032x}", {"timestamp_ms": round(start_ms + number * step_ms)})
                for number in range(1, traces)
            ),
            "request_id",
        )
        _copy(
            database,
            "assessments",
            (
                (f"a-{number}", {"trace_id": f"tr-{number:032x}", "name": "good"})
                for number in range(1, traces, ASSESSED)
            ),
            "assessment_id",
        )
    return uri


def _copy(database: sqlite3.Connection, table: str, rows: Iterator[tuple[str, dict[str, Any]]], key: str) -> None:
    """Copy the table's only row, each time with another key and other values."""
    cursor = database.execute(f"SELECT * FROM {table}")  # noqa: S608 - the name comes from this file
    columns = [column[0] for column in cursor.description]
    model = dict(zip(columns, cursor.fetchone(), strict=True))
    marks = ", ".join("?" * len(columns))
    database.executemany(
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
        ([{**model, **values, key: name}[column] for column in columns] for name, values in rows),
    )


def measured(uri: str, source: Literal["mlflow", "mlflow-sql"], now: datetime) -> dict[str, Any]:
    """The median time of five comparisons of the store, and the hours that differ."""
    tracking = TrackingResource(tracking_uri=uri, experiments=["agent"])
    archive = ArchiveSettings.model_validate({"source": source, "start": (now - YEAR).isoformat()})
    seconds: list[float] = []
    hours = 0
    with tempfile.TemporaryDirectory() as folder:
        lake = LakeResource(location=folder, spark=SparkResource())
        for _ in range(LOOKS):
            began = time.perf_counter()
            found = look(archive, SensorSettings(), tracking, lake, now, None)
            seconds.append(time.perf_counter() - began)
            hours = len(found.due)
    return {"source": source, "look_s": round(statistics.median(seconds), 3), "due_hours": hours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=int, nargs="+", help="numbers of traces in a store")
    now = datetime.now(UTC)
    for traces in parser.parse_args().traces:
        with tempfile.TemporaryDirectory() as folder:
            uri = filled(Path(folder), traces, now)
            for source in ("mlflow", "mlflow-sql"):
                print(json.dumps({"traces": traces, **measured(uri, source, now)}), flush=True)


if __name__ == "__main__":
    main()
