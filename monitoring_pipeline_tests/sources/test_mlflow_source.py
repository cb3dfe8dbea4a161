"""The source `mlflow`: the traces of a window and of the monitored experiments, each once and in order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import cast

import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation

from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources import mlflow as mlflow_source
from monitoring_pipeline.sources.base import Batch
from monitoring_pipeline.sources.mlflow import MlflowSource
from monitoring_pipeline.sources.opening import open_source
from monitoring_pipeline.traces.flatten import UNREADABLE_VALUE, FlatTrace, UnreadableTrace, flatten
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store


@pytest.fixture
def store(store: Store) -> Store:
    """A store with a second experiment."""
    MlflowClient(store.uri).create_experiment("other", artifact_location=str(store.file.parent))
    return store


def start_traces(store: Store, experiment: str, starts: dict[str, datetime]) -> None:
    """Log a trace in progress for each id."""
    found = MlflowClient(store.uri).get_experiment_by_name(experiment)
    assert found
    for trace_id, start in starts.items():
        store.client.start_trace(
            TraceInfo(
                trace_id,
                TraceLocation.from_experiment_id(found.experiment_id),
                round(start.timestamp() * 1000),
                TraceState.IN_PROGRESS,
            )
        )


def traces(store: Store, *experiments: str) -> Iterator[list[Trace | UnreadableTrace]]:
    """The traces of the hour in these experiments, or in all."""
    tracking = TrackingResource(tracking_uri=store.uri, experiments=list(experiments))
    return MlflowSource(tracking, tracking.experiment_names()).read(HOUR)


def ids(batches: Iterator[list[Trace | UnreadableTrace]]) -> list[str]:
    return [trace.trace_id for batch in batches for trace in batch]


def test_traces_of_the_window_and_experiments_are_returned_in_order(store: Store) -> None:
    minute, millisecond = timedelta(minutes=1), timedelta(milliseconds=1)
    start_traces(store, "made", {"c": START + 2 * minute, "a": START, "b": START + minute})
    start_traces(store, "made", {"before": START - millisecond, "end": HOUR.end, "last": HOUR.end - millisecond})
    start_traces(store, "other", {"elsewhere": START})

    assert ids(traces(store, "made")) == ["a", "b", "c", "last"]


def test_traces_of_all_experiments_are_returned_together_in_order(store: Store) -> None:
    minute = timedelta(minutes=1)
    start_traces(store, "made", {"a": START, "c": START + 2 * minute})
    start_traces(store, "other", {"b": START + minute})

    assert ids(traces(store)) == ["a", "b", "c"]


@pytest.mark.parametrize("same_moment", [1, 2, 3, 7, 20])
def test_each_trace_is_returned_once_wherever_pages_end(
    store: Store, monkeypatch: pytest.MonkeyPatch, same_moment: int
) -> None:
    monkeypatch.setattr(mlflow_source, "PAGE", 3)
    starts = {f"t{number:02}": START + timedelta(milliseconds=number // same_moment) for number in range(20)}
    start_traces(store, "made", starts)

    assert ids(traces(store)) == list(starts)


def test_more_traces_than_fit_on_a_page_may_share_a_moment(store: Store) -> None:
    start_traces(store, "made", {"first": START})
    with closing(sqlite3.connect(store.file)) as database, database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(trace_info)") if row[1] != "request_id"]
        database.executemany(
            f"INSERT INTO trace_info (request_id, {', '.join(columns)}) SELECT ?, {', '.join(columns)} FROM trace_info "  # noqa: S608 - the schema's own names
            "WHERE request_id = 'first'",
            [(f"t{number:04}",) for number in range(mlflow_source.PAGE + 100)],
        )

    found = ids(traces(store))

    assert found == ["first", *(f"t{number:04}" for number in range(mlflow_source.PAGE + 100))]


def test_no_trace_is_skipped_if_others_are_deleted_between_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_source, "PAGE", 3)
    start_traces(store, "made", {f"t{number}": START + timedelta(seconds=number) for number in range(8)})
    batches = traces(store)

    read = ids(iter([next(batches)]))
    store.client.delete_traces(store.experiment_id, trace_ids=["t0", "t1"])

    assert read + ids(batches) == [f"t{number}" for number in range(8)]


def test_a_trace_whose_own_metadata_has_our_mark_is_read_like_any_other(store: Store) -> None:
    logged = [store.log(1), store.log(2, trace_metadata={UNREADABLE_VALUE: "a client's own"}), store.log(3)]

    assert sorted(ids(traces(store))) == logged


def test_a_database_is_counted_by_mlflow_and_read_without_it(store: Store) -> None:
    for number in (1, 2):
        store.log(number)
    tracking = TrackingResource(tracking_uri=store.uri, experiments=["made"])
    by_mlflow = MlflowSource(tracking, tracking.experiment_names())

    with open_source(ArchiveSettings(source="mlflow"), tracking, SparkResource()) as source:
        found = [trace for batch in cast("Iterator[Batch]", source.read(HOUR)) for trace in batch]
        assert source.counts(HOUR) == by_mlflow.counts(HOUR)

    assert [trace.row["trace_json"] for trace in found if isinstance(trace, FlatTrace)] == [
        flatten(trace, START)["trace_json"]
        for batch in by_mlflow.read(HOUR)
        for trace in batch
        if isinstance(trace, Trace)
    ]
    assert len(found) == 2
