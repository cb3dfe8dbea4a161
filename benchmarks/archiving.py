"""Archiving an MLflow store into an empty lake, against `mlflow.search_traces` with spans, which keeps nothing."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from benchmarks.measuring import ENVIRONMENT, Result, at_most, faster, measured, medians, no_more, side_by_side
from benchmarks.stores import DAYS, EXPERIMENT, START, fill_store
from monitoring_pipeline_tests.servers import running

TRACES, SMALL_TRACES = 20_000, 2_000
SERVER_TRACES, SMALL_SERVER_TRACES = 2_400, 300
TIMES_MORE = 5
NOISE = 1.1  # "no slower", on machines that vary
Spans = dict[str, list[tuple[str, str, int]]]


def subject(folder: Path, small: bool) -> Iterator[Result]:
    """`mlflow-sql`, its memory, and five times as many traces; `mlflow` from the database and over HTTP."""
    traces, rounds = (SMALL_TRACES, 1) if small else (TRACES, 3)
    address = fill_store(folder / "store", traces)
    ours, search = side_by_side(archive_by_sql, search_traces, address, rounds=rounds)
    shown = f"{traces:,} traces x 4 spans"
    yield faster(f"archive {shown} by mlflow-sql, against search_traces", ours, search, 8, rounds)
    yield at_most(f"archive {shown} by mlflow-sql, memory", ours, 600, "peak_mb", rounds)
    more = fill_store(folder / "more", traces * TIMES_MORE)
    many = medians([measured(archive_by_sql, more)[0] for _ in range(rounds)])
    each = type(many)(many.wall_s / TIMES_MORE, many.cpu_s / TIMES_MORE, many.peak_mb)
    work = f"archive {TIMES_MORE} x as many by mlflow-sql (seconds for {traces:,}), against {traces:,}"
    yield no_more(work, each, ours, NOISE, "wall_s", rounds)

    # search_traces is measured again beside this one, because a shared machine varies.
    slow_rounds = 1
    ours, search = side_by_side(archive_by_client, search_traces, address, rounds=slow_rounds)
    yield faster(f"archive {shown} by mlflow, against search_traces", ours, search, 2.5, slow_rounds)
    served = SMALL_SERVER_TRACES if small else SERVER_TRACES
    with patch.dict(os.environ, ENVIRONMENT), running(fill_store(folder / "served", served), folder) as server:
        ours, search = side_by_side(archive_by_client, search_traces, server.uri, rounds=rounds)
    work = f"archive {served:,} traces x 4 spans by mlflow over HTTP, against search_traces over HTTP"
    yield faster(work, ours, search, 2, rounds)


def archive_by_sql(address: str) -> Generator[None, None, Spans]:
    return _archive(address, "mlflow-sql")


def archive_by_client(address: str) -> Generator[None, None, Spans]:
    return _archive(address, "mlflow")


def _archive(address: str, source: Literal["mlflow", "mlflow-sql"]) -> Generator[None, None, Spans]:
    from monitoring_pipeline.archive.window import archive_window
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.spark import SparkResource
    from monitoring_pipeline.resources.tracking import TrackingResource
    from monitoring_pipeline.settings import ArchiveSettings
    from monitoring_pipeline.tables import AGENT_TRACES
    from monitoring_pipeline.windows import HOUR, Window

    lake = LakeResource(location="lake", spark=SparkResource())
    tracking = TrackingResource(tracking_uri=address, experiments=[EXPERIMENT])
    settings = ArchiveSettings(source=source)
    archive_window(settings, tracking, LakeResource(location="warm", spark=lake.spark), Window(START, START + HOUR))
    week = Window(START, START + timedelta(days=DAYS))
    yield
    archive_window(settings, tracking, lake, week)
    yield
    return {
        row["trace_id"]: sorted((s["span_id"], s["status"], _us(s["end_time"])) for s in row["spans"])
        for batch in lake.read_columns(AGENT_TRACES, week, "trace_id", "spans").to_batches()
        for row in batch.to_pylist()
    }


def search_traces(address: str) -> Generator[None, None, Spans]:
    import mlflow

    mlflow.set_tracking_uri(address)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    mlflow.search_traces(locations=[experiment.experiment_id], return_type="list", max_results=10)
    yield
    traces = mlflow.search_traces(
        locations=[experiment.experiment_id], include_spans=True, return_type="list", max_results=10**9
    )
    yield
    return {
        trace.info.trace_id: sorted(
            (span.span_id, span.status.status_code.value, (span.end_time_ns or 0) // 1000) for span in trace.data.spans
        )
        for trace in traces
    }


def _us(moment: Any) -> int:
    return round(moment.timestamp() * 10**6)
