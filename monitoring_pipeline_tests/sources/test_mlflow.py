"""Reading a window of traces completely and each once, whatever happens at the source meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace, TraceState
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from monitoring_pipeline.sources import mlflow as mlflow_source
from monitoring_pipeline.sources.mlflow import read_traces
from monitoring_pipeline.traces.flatten import UnreadableTrace
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.sources.stores import (
    HOUR,
    START,
    START_MS,
    Faulty,
    Store,
    no_answer,
    span_json,
    trace_id,
)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_source, "PAGE", 3)


def read(store: Store, window: Window = HOUR) -> list[Trace | UnreadableTrace]:
    return [trace for batch in read_traces(store.client, [store.experiment_id], window) for trace in batch]


def ids(traces: list[Trace | UnreadableTrace]) -> list[str]:
    return [trace.trace_id for trace in traces]


def reason(trace: Trace | UnreadableTrace) -> str:
    assert isinstance(trace, UnreadableTrace)
    return trace.reason


@pytest.mark.parametrize("source", ["recorded_store", "recorded_server"])
def test_the_recorded_traces_equal_those_of_mlflows_search(
    request: pytest.FixtureRequest, recorded_store: str, source: str
) -> None:
    client = TracingClient(request.getfixturevalue(source))
    experiment = MlflowClient(recorded_store).get_experiment_by_name("airline")
    assert experiment is not None
    ids_read = [
        trace.trace_id for batch in read_traces(client, [experiment.experiment_id], RECORDED_WINDOW) for trace in batch
    ]
    found = MlflowClient(recorded_store).search_traces(
        [experiment.experiment_id], max_results=1000, include_spans=False
    )
    in_order = sorted(found, key=lambda trace: (trace.info.request_time, trace.info.trace_id))
    assert ids_read == [trace.info.trace_id for trace in in_order]


def test_the_window_is_half_open(store: Store) -> None:
    step = timedelta(milliseconds=1)
    times = [HOUR.start - step, HOUR.start, HOUR.end - step, HOUR.end]
    for number, started in enumerate(times, 1):
        store.log(number, started=started)
    assert ids(read(store)) == [trace_id(2), trace_id(3)]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize(
    "offsets_ms",
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 3, 4, 5, 6],
        [0, 1, 1, 1, 1, 1, 2],
        [0, 0, 0, 1, 1, 1, 1],
        [5, 5, 5, 5, 6, 6, 6],
        [1, 1, 1],
    ],
)
def test_pages_return_each_trace_once_in_order(store: Store, offsets_ms: list[int]) -> None:
    for number, offset in enumerate(offsets_ms, 1):
        store.log(number, started=START + timedelta(milliseconds=offset))
    assert ids(read(store)) == [trace_id(number) for number in range(1, len(offsets_ms) + 1)]


@pytest.mark.usefixtures("small_pages")
def test_no_trace_is_skipped_if_others_are_deleted_between_pages(store: Store) -> None:
    for number in range(1, 8):
        store.log(number)
    batches = read_traces(store.client, [store.experiment_id], HOUR)
    seen = ids(next(batches))
    store.client.delete_traces(store.experiment_id, trace_ids=[trace_id(1), trace_id(2)])
    seen += [trace.trace_id for batch in batches for trace in batch]
    assert seen == [trace_id(number) for number in range(1, 8)]


@pytest.mark.usefixtures("small_pages")
def test_no_trace_is_returned_twice_if_others_arrive_between_pages(store: Store) -> None:
    for number in range(2, 8):
        store.log(number)
    batches = read_traces(store.client, [store.experiment_id], HOUR)
    seen = ids(next(batches))
    store.log(1)
    seen += [trace.trace_id for batch in batches for trace in batch]
    assert seen == [trace_id(number) for number in range(2, 8)]


def test_a_trace_deleted_between_listing_and_reading_is_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        store.log(number)
    search = store.client.store.search_traces

    def search_then_delete(**arguments: Any) -> Any:
        found = search(**arguments)
        store.client.delete_traces(store.experiment_id, trace_ids=[trace_id(1)])
        return found

    monkeypatch.setattr(store.client.store, "search_traces", search_then_delete)
    assert ids(read(store)) == [trace_id(2)]


def test_several_experiments_are_read_together(store: Store) -> None:
    other = MlflowClient(store.uri).create_experiment("other")
    unread = MlflowClient(store.uri).create_experiment("unread")
    for number, experiment_id in enumerate([store.experiment_id, other, unread], 1):
        Store(store.file, store.client, experiment_id).log(number)
    [batch] = read_traces(store.client, [store.experiment_id, other], HOUR)
    assert [(trace.trace_id, trace.info.experiment_id) for trace in batch if isinstance(trace, Trace)] == [
        (trace_id(1), store.experiment_id),
        (trace_id(2), other),
    ]


def test_an_empty_window_returns_nothing(store: Store) -> None:
    assert read(store) == []


def test_a_trace_in_progress_is_read_with_its_current_spans(store: Store) -> None:
    size = {"mlflow.trace.sizeStats": json.dumps({"num_spans": 5})}  # which MLflow's batches wait for
    store.log(1, state=TraceState.IN_PROGRESS, duration_ms=None, trace_metadata=size)
    [trace] = read(store)
    assert isinstance(trace, Trace)
    assert [span.name for span in trace.data.spans] == ["span 1"]


def test_a_trace_in_progress_without_spans_is_read(store: Store) -> None:
    store.log(1, [], state=TraceState.IN_PROGRESS, duration_ms=None)
    [trace] = read(store)
    assert isinstance(trace, Trace)
    assert (trace.info.state, trace.data.spans) == (TraceState.IN_PROGRESS, [])


def test_a_finished_trace_whose_spans_are_missing_is_unreadable(store: Store) -> None:
    store.log(1, [])
    [trace] = read(store)
    assert "spans are missing" in reason(trace)


def test_a_trace_with_its_spans_in_a_file_is_read(store: Store, tmp_path: Path) -> None:
    store.log(1, [])
    tags = store.client.get_trace_info(trace_id(1)).tags
    folder = Path(tags["mlflow.artifactLocation"].removeprefix("file://"))
    folder.mkdir(parents=True)
    (folder / "traces.json").write_text(json.dumps({"spans": [span_json(1, name="from a file")]}))
    [trace] = read(store)
    assert isinstance(trace, Trace)
    assert [span.name for span in trace.data.spans] == ["from a file"]


@pytest.mark.parametrize("content", ["{oops", "5", "[" * 2000 + "]" * 2000])
def test_a_corrupt_span_makes_only_its_trace_unreadable(store: Store, content: str) -> None:
    for number in (1, 2, 3):
        store.log(number)
    store.store_spans(2, content)
    assert [type(trace) for trace in read(store)] == [Trace, UnreadableTrace, Trace]


def test_an_unreadable_trace_has_its_start_and_raw_content(store: Store) -> None:
    store.log(1, started=START + timedelta(milliseconds=1_001), tags={"team": "blue"})
    store.store_spans(1, "{oops")
    [trace] = read(store)
    assert isinstance(trace, UnreadableTrace)
    assert trace.started == START + timedelta(milliseconds=1_001)
    assert "blue" in trace.raw


@pytest.mark.usefixtures("small_pages")
def test_an_unparsable_info_makes_only_its_trace_unreadable(store: Store) -> None:
    for number in range(1, 9):
        store.log(number)
    store.sql("UPDATE trace_info SET status = 'PAUSED' WHERE request_id = ?", (trace_id(5),))
    traces = read(store)
    assert sorted(ids(traces)) == [trace_id(number) for number in range(1, 9)]
    assert [trace.trace_id for trace in traces if isinstance(trace, UnreadableTrace)] == [trace_id(5)]


@pytest.mark.usefixtures("small_pages")
def test_many_unparsable_infos_of_one_moment_are_each_read_once(store: Store) -> None:
    for number in range(1, 9):
        store.log(number, started=START)
    store.sql("UPDATE trace_info SET status = 'PAUSED'")
    traces = read(store)
    assert ids(traces) == [trace_id(number) for number in range(1, 9)]
    assert {reason(trace) for trace in traces} == {"'PAUSED' is not a valid TraceState"}


def test_an_unparsable_info_outside_the_window_or_the_experiments_is_not_read(store: Store) -> None:
    other = MlflowClient(store.uri).create_experiment("other")
    store.log(1)
    store.log(2)
    store.log(3, started=HOUR.end)
    Store(store.file, store.client, other).log(4)
    store.sql("UPDATE trace_info SET status = 'PAUSED' WHERE request_id <> ?", (trace_id(1),))
    assert sorted(ids(read(store))) == [trace_id(1), trace_id(2)]


@pytest.mark.parametrize(
    "fails",
    [
        ["search_traces"],
        ["batch_get_traces", "get_trace", "get_trace_info"],
        ["batch_get_traces", "get_trace", "get_trace_info", "search_traces", "get_experiment"],
    ],
)
def test_a_source_that_does_not_answer_raises(store: Store, fails: list[str]) -> None:
    store.log(1)
    client: Any = Faulty(store.client, *fails)
    with pytest.raises(MlflowException, match="no answer"):
        list(read_traces(client, [store.experiment_id], HOUR))


def test_a_database_that_does_not_answer_while_listing_one_by_one_raises(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log(1)
    for call in ("search_traces", "get_trace_info", "get_experiment"):
        monkeypatch.setattr(store.client.store, call, no_answer)
    with pytest.raises(MlflowException, match="no answer"):
        read(store)


def test_batches_are_small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_source, "BATCH", 2)
    for number in range(1, 6):
        store.log(number)
    assert [len(batch) for batch in read_traces(store.client, [store.experiment_id], HOUR)] == [2, 2, 1]


def test_reading_is_lazy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_source, "BATCH", 1)
    store.log(1)
    store.log(2)
    batches: Iterator[list[Trace | UnreadableTrace]] = read_traces(store.client, [store.experiment_id], HOUR)
    assert ids(next(batches)) == [trace_id(1)]
    store.client.set_trace_tag(trace_id(2), "late", "yes")
    [second] = next(batches)
    assert isinstance(second, Trace)
    assert second.info.tags["late"] == "yes"


def test_the_time_of_an_unreadable_trace_is_exact() -> None:
    started = datetime(2026, 1, 1, 5, 0, 0, 1000, tzinfo=UTC)
    assert UnreadableTrace("tr-1", started, "", "").request_time == START_MS + 1
