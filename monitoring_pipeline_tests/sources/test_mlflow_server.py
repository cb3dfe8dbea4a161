"""Traces that a real MLflow server cannot send, among others that it can."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any, cast

import pytest
from mlflow.entities import Feedback, Trace, TraceData
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.sources import mlflow as mlflow_source
from monitoring_pipeline.sources import mlflow_server
from monitoring_pipeline.sources.mlflow import MlflowSource
from monitoring_pipeline.sources.mlflow_server import MOST_UNSENT, ServerHealth
from monitoring_pipeline.traces.flatten import UNREADABLE_VALUE, UnreadableTrace, flatten
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store, span_json, trace_id

pytestmark = pytest.mark.usefixtures("few_retries")

COUNT = 9
UNSENDABLE = {3, 8}
PLAIN = 5


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Nine traces. The server cannot send two of them, because they have NaN feedback.

    One has attributes that are not JSON texts, as OpenTelemetry's SDK and MLflow's translations store them.
    """
    made = Store.create(tmp_path_factory.mktemp("traces"))
    for number in range(COUNT):
        made.log(number)
        value = float("nan") if number in UNSENDABLE else 1.0
        made.client.log_assessment(trace_id(number), Feedback(name="similarity", value=value))
    span = span_json(PLAIN)
    span["attributes"] |= {
        "mlflow.message.format": "vercel_ai",
        "mlflow.spanInputs": "Où est-il ?",
        **{"a representation": "{'a': [1]}", "a list of names": "['a']", "a quotation": '"a" and b'},
        **{"a number": 5, "true": True, "a list": ["é"], "a text of a number": "0.5"},
    }
    made.store_spans(PLAIN, json.dumps(span, ensure_ascii=False))
    return made


def test_the_others_are_read_and_these_without_their_assessments(traces: Store, server: str) -> None:
    source = MlflowSource(TrackingResource(tracking_uri=server), {traces.experiment_id: "made"})
    found = [trace for batch in source.read(HOUR) for trace in batch]

    of_database = MlflowSource(TrackingResource(tracking_uri=traces.uri), {traces.experiment_id: "made"})
    expected = [trace for batch in of_database.read(HOUR) for trace in batch]
    rows, others = (
        {row["trace_id"]: row for row in (flatten(trace, START) for trace in read if isinstance(trace, Trace))}
        for read in (found, expected)
    )
    assert rows.keys() == others.keys() == {trace_id(number) for number in range(COUNT)}
    for number in range(COUNT):
        row, other = rows[trace_id(number)], others[trace_id(number)]
        assert (row["spans"], row["duration_ms"], row["tags"]) == (other["spans"], other["duration_ms"], other["tags"])
        assert row["part_digests"]["spans"] == other["part_digests"]["spans"]
        if number in UNSENDABLE:
            assert row["assessments"] == []
            assert row["implausible"] == ["trace assessments not sent by the server"]
            assert row["metadata"].keys() - other["metadata"].keys() == {UNREADABLE_VALUE}
        else:
            assert row["trace_json"] == other["trace_json"]


def test_attributes_that_are_not_json_are_written_as_json(traces: Store) -> None:
    source = MlflowSource(TrackingResource(tracking_uri=traces.uri), {traces.experiment_id: "made"})
    found = [trace for batch in source.read(HOUR) for trace in batch if isinstance(trace, Trace)]
    [row] = [flatten(trace, START) for trace in found if trace.info.trace_id == trace_id(PLAIN)]
    assert row["request"] == '"Où est-il ?"'
    assert row["spans"][0]["metadata"]["mlflow.message.format"] == '"vercel_ai"'
    assert row["spans"][0]["tags"] == {
        "a representation": "\"{'a': [1]}\"",
        "a list of names": "\"['a']\"",
        "a quotation": '"\\"a\\" and b"',
        "a number": "5",
        "true": "true",
        "a list": '["é"]',
        "a text of a number": "0.5",
    }


@pytest.mark.parametrize("answer", ["garbage", "nothing"])
def test_traces_whose_answers_are_garbled_for_a_while_arrive(
    traces: Store, server: str, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    tracking = TrackingResource(tracking_uri=server)
    calls = Counter[tuple[str, ...]]()
    send = RestStore.batch_get_traces

    def garbled(self: RestStore, trace_ids: list[str], location: str | None = None) -> list[Trace]:
        calls[(*trace_ids,)] += 1
        if calls[(*trace_ids,)] % 4:
            return json.loads("<html>502</html>" if answer == "garbage" else "[]")
        return send(self, trace_ids, location)

    monkeypatch.setattr(RestStore, "batch_get_traces", garbled)
    monkeypatch.setattr(
        mlflow_source, "_from_the_store", lambda client, key: next(iter(garbled(client.store, [key])), None)
    )
    source = MlflowSource(tracking, {traces.experiment_id: "made"})
    assert all(isinstance(trace, Trace) for batch in source.read(HOUR) for trace in batch)
    assert set(calls.values()) >= ({4} if answer == "garbage" else {1, 4})


@pytest.mark.parametrize("in_flight", [1, 2, 20])
def test_traces_arrive_in_order_with_several_requests_in_flight(
    traces: Store, server: str, monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    monkeypatch.setattr(mlflow_source, "BATCH", 1)
    monkeypatch.setattr(mlflow_source, "IN_FLIGHT", in_flight)
    source = MlflowSource(TrackingResource(tracking_uri=server), {traces.experiment_id: "made"})
    before = threading.active_count()

    assert [trace.info.trace_id for [trace] in source.read(HOUR) if isinstance(trace, Trace)] == [
        trace_id(number) for number in range(COUNT)
    ]
    assert threading.active_count() == before


def test_a_server_that_fails_on_many_traces_is_an_error(
    traces: Store, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_server, "MOST_ON_A_PAGE", 1)
    source = MlflowSource(TrackingResource(tracking_uri=server), {traces.experiment_id: "made"})
    with pytest.raises(MlflowException, match="500"):
        list(source.read(HOUR))


@pytest.mark.parametrize(("failing", "stops"), [(COUNT, True), (COUNT - 2, False)], ids=["all", "all but one"])
def test_a_server_that_sends_no_spans_fails_the_read_and_quarantines_no_trace(
    traces: Store, server: str, monkeypatch: pytest.MonkeyPatch, failing: int, stops: bool
) -> None:
    failed = {trace_id(number) for number in range(failing)}

    def times_out(self: RestStore, trace_ids: list[str], location: str | None = None) -> list[Trace]:
        raise MlflowException("timed out")

    def alone(client: Any, info: Any) -> Trace:
        if info.trace_id in failed:
            raise MlflowException("timed out")
        return Trace(info, TraceData([]))

    monkeypatch.setattr(RestStore, "batch_get_traces", times_out)
    monkeypatch.setattr(mlflow_source, "_alone", alone)
    source = MlflowSource(TrackingResource(tracking_uri=server), {traces.experiment_id: "made"})
    if stops:
        with pytest.raises(TrackingError, match=r"not send the spans of \d+ of \d+ traces \(.*timed out\); the hour"):
            list(source.read(HOUR))
    else:
        found = [trace for batch in source.read(HOUR) for trace in batch]
        assert sum(isinstance(trace, Trace) for trace in found) >= 1


def test_a_server_that_fails_on_most_of_many_traces_is_not_asked_for_the_rest() -> None:
    health, unreadable = ServerHealth(), UnreadableTrace("tr-1", START, "502", "")
    for _ in range(MOST_UNSENT):
        health.note(unreadable)
    health.note(None)
    with pytest.raises(TrackingError, match="the spans of 21 of 21 traces"):
        health.note(unreadable)
    mostly_well = ServerHealth()
    for _ in range(3 * MOST_UNSENT):
        mostly_well.note(cast("Trace", object()))
        mostly_well.note(unreadable)
    mostly_well.check_end()
