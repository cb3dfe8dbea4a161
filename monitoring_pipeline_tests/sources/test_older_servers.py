"""Servers that lack calls, as older MLflow versions do: a proxy in front of a real server answers in their place."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Expectation, Feedback, Trace, TraceState

from monitoring_pipeline.cli.doctor import Finding, examine
from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.servers import BATCH_GET, BATCH_GET_INFOS, GET, METRICS, SEARCH
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import MlflowSettings, Settings
from monitoring_pipeline.sources import mlflow as mlflow_source
from monitoring_pipeline.sources.mlflow import MlflowSource
from monitoring_pipeline.traces.flatten import UnreadableTrace
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.sources.stores import START, Store, span_json, trace_id

pytestmark = pytest.mark.usefixtures("few_retries")

AN_HOUR = timedelta(hours=1)
WINDOW = Window(START, START + 4 * AN_HOUR)
CORRUPT, UNFINISHED, WITHOUT_SPANS = 8, 9, 10
Answer = tuple[int, str, str]
NO_PAGE: Answer = (404, "text/html", "<!doctype html>\n<title>404 Not Found</title>")
NO_METHOD: Answer = (405, "text/html", "<!doctype html>\n<title>405 Method Not Allowed</title>")
LACKING_IN_3_6: dict[str, Answer] = {METRICS: NO_METHOD, BATCH_GET_INFOS: NO_METHOD}


def taken_for_an_id(endpoint: str) -> Answer:
    """The answer of servers for which the last word of the endpoint is the id of a trace."""
    word = endpoint.rsplit("/", 1)[-1]
    error = f'{{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Trace with ID \'{word}\' not found."}}'
    return 404, "application/json", error


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten traces in four hours with assessments of all kinds; two in progress, and one that cannot be read."""
    made = Store.create(tmp_path_factory.mktemp("traces"))
    for number in range(1, CORRUPT + 1):
        made.log(number, started=START + (number // 3) * AN_HOUR + timedelta(minutes=number))
    unfinished = START + AN_HOUR
    made.log(UNFINISHED, [span_json(9, 2, 1, unfinished)], state=TraceState.IN_PROGRESS, started=unfinished)
    made.log(WITHOUT_SPANS, [], state=TraceState.IN_PROGRESS, started=unfinished)
    values: list[Any] = [True, "no", 0.3, 7, "a text", {"of": "parts"}]
    for number, value in enumerate(values, 1):
        made.client.log_assessment(trace_id(number), Feedback(name="good", value=value))
    made.client.log_assessment(trace_id(1), Expectation(name="expected", value=0.25))
    [given] = made.client.get_trace(trace_id(2)).info.assessments
    made.client.log_assessment(
        trace_id(2), Feedback(name="good", value=True, overrides=given.assessment_id, source=AssessmentSource("HUMAN"))
    )
    made.store_spans(CORRUPT, "{oops")
    return made


class OlderServer(ThreadingHTTPServer):
    """Answers the calls in `lacking` itself, like a server without them, and passes all others on to `server`."""

    daemon_threads = True

    def __init__(self, server: str, lacking: dict[str, Answer]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server, self.lacking = server, lacking
        self.asked: list[str] = []
        self.uri = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: OlderServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, content_type, answer = self.server.lacking.get(path) or self.passed_on(body)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(answer.encode())))
        self.end_headers()
        self.wfile.write(answer.encode())

    do_POST = do_GET

    def passed_on(self, body: bytes) -> Answer:
        if self.path == "/version":
            return 200, "text/html", "3.4.0"
        connection = http.client.HTTPConnection(urlsplit(self.server.server).netloc)
        connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def older(server: str, lacking: dict[str, Answer]) -> Iterator[OlderServer]:
    """A server without some calls, for the length of a `with` block."""
    with OlderServer(server, lacking) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


def source_of(uri: str) -> MlflowSource:
    tracking = TrackingResource(tracking_uri=uri, experiments=["made"])
    return MlflowSource(tracking, tracking.experiment_names())


@pytest.mark.parametrize("answer", [NO_PAGE, NO_METHOD], ids=["404", "405"])
def test_counts_without_the_endpoint_equal_those_of_the_endpoint(
    server: str, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_source, "PAGE", 3)
    expected = source_of(server).counts(WINDOW)
    assert [(of.traces, of.in_progress, of.assessments) for _, of in sorted(expected.items())] == [
        (2, 0, 3),
        (5, 2, 3),
        (3, 0, 1),
    ]
    with older(server, {METRICS: answer}) as proxy:
        source = source_of(proxy.uri)
        assert source.counts(WINDOW) == expected
        for hour, counts in expected.items():
            assert source.counts(Window(hour, hour + AN_HOUR)) == {hour: counts}
        assert proxy.asked.count(METRICS) == 1


def test_an_error_of_the_endpoint_is_not_taken_for_its_absence(server: str) -> None:
    failing = {METRICS: (403, "application/json", '{"error_code": "PERMISSION_DENIED", "message": "not you"}')}
    with older(server, failing) as proxy:
        source = source_of(proxy.uri)
        for _ in range(2):
            with pytest.raises(TrackingError, match="not you"):
                source.counts(WINDOW)
        assert SEARCH not in proxy.asked


@pytest.mark.parametrize("lacking_get", [taken_for_an_id(GET), NO_PAGE], ids=["taken for an id", "404"])
def test_a_server_without_the_newer_calls_gives_the_same_traces(server: str, lacking_get: Answer) -> None:
    expected = read(server)
    assert [number for number, kind in expected.items() if kind is UnreadableTrace] == [trace_id(CORRUPT)]
    with older(server, LACKING_IN_3_6 | {GET: lacking_get}) as proxy:
        assert read(proxy.uri) == expected


def read(uri: str) -> dict[str, type]:
    return {trace.trace_id: type(trace) for batch in source_of(uri).read(WINDOW) for trace in batch}


@pytest.mark.parametrize("answer", [NO_METHOD, taken_for_an_id(BATCH_GET_INFOS)], ids=["405", "taken for an id"])
def test_moved_traces_are_found_one_by_one(server: str, answer: Answer) -> None:
    hours: dict[str, datetime] = {trace_id(1): START - AN_HOUR, trace_id(2): START, trace_id(99): START}
    with older(server, {BATCH_GET_INFOS: answer}) as proxy:
        moved = [trace for batch in source_of(proxy.uri).moved(hours) for trace in batch]
    assert [trace.trace_id for trace in moved] == [trace_id(1)]
    assert isinstance(moved[0], Trace)


@pytest.mark.parametrize(
    "lacking",
    [{BATCH_GET: NO_PAGE}, {BATCH_GET: NO_METHOD}, {BATCH_GET: taken_for_an_id(BATCH_GET)}, {SEARCH: NO_METHOD}],
    ids=["404", "405", "taken for an id", "no search"],
)
def test_a_server_that_cannot_send_traces_is_an_error_that_names_the_call_and_the_version(
    server: str, lacking: dict[str, Answer]
) -> None:
    [endpoint] = lacking
    with older(server, lacking) as proxy, pytest.raises(TrackingError) as error:
        list(source_of(proxy.uri).read(WINDOW))
    assert str(error.value) == (
        f"the MLflow server at {proxy.uri} has version 3.4.0 and lacks {endpoint}; "
        "upgrade it to MLflow 3.6 or newer, or use another [archive] source"
    )


def test_a_trace_whose_spans_are_in_the_servers_artifacts_is_read_with_its_batch(traces: Store, server: str) -> None:
    client = MlflowClient(traces.uri)
    experiment_id = client.create_experiment("proxied", artifact_location="mlflow-artifacts:/proxied")
    store = Store(traces.file, traces.client, experiment_id)
    number, missing, other = 21, 22, 23
    store.log(number, [])
    store.log(missing, [])
    store.log(other)
    folder = store.client.get_trace_info(trace_id(number)).tags["mlflow.artifactLocation"].partition(":/")[2]
    connection = http.client.HTTPConnection(urlsplit(server).netloc)
    spans = json.dumps({"spans": [span_json(number, name="from the artifacts")]})
    connection.request("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{folder}/traces.json", spans)
    assert connection.getresponse().status == 200

    for lacking in ({}, LACKING_IN_3_6):
        with older(server, lacking) as proxy:
            source = MlflowSource(TrackingResource(tracking_uri=proxy.uri), {experiment_id: "proxied"})
            read = [trace for batch in source.read(WINDOW) for trace in batch]
            assert proxy.asked.count(BATCH_GET) == 1
        found = {trace.trace_id: trace for trace in read}
        assert isinstance(found[trace_id(other)], Trace)
        artifact, unreadable = found[trace_id(number)], found[trace_id(missing)]
        assert isinstance(artifact, Trace)
        assert [span.name for span in artifact.data.spans] == ["from the artifacts"]
        assert isinstance(unreadable, UnreadableTrace)
        assert unreadable.reason == "its spans are missing or corrupt"


def store_finding(uri: str) -> tuple[Finding, float]:
    """What `doctor` and `run` say of the store, and after how many seconds."""
    settings = Settings(mlflow=MlflowSettings(tracking_uri=uri), scorers=[])
    started = time.monotonic()
    finding = next(finding for finding in examine(settings) if finding.subject == "store")
    return finding, time.monotonic() - started


def test_doctor_says_at_once_which_version_is_needed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with older(server, {BATCH_GET: taken_for_an_id(BATCH_GET)}) as proxy:
        finding, seconds = store_finding(proxy.uri)
    assert not finding.healthy
    assert "has version 3.4.0" in finding.detail
    assert "upgrade it to MLflow 3.6 or newer" in finding.detail
    assert seconds < 5


def test_doctor_accepts_a_server_without_the_newer_calls(server: str) -> None:
    with older(server, LACKING_IN_3_6 | {GET: taken_for_an_id(GET)}) as proxy:
        assert store_finding(proxy.uri)[0].healthy


def test_a_server_that_fails_is_reported_at_once(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with older(server, {BATCH_GET: (500, "text/html", "out of order")}) as proxy:
        finding, seconds = store_finding(proxy.uri)
    assert not finding.healthy
    assert finding.detail.startswith(f"cannot use the MLflow store at {proxy.uri}: ")
    assert "\n" not in finding.detail
    assert seconds < 5


def test_a_server_that_does_not_answer_is_reported_without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    monkeypatch.setattr("monitoring_pipeline.resources.servers.ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding, seconds = store_finding(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert not finding.healthy
    assert "timed out" in finding.detail
    assert "\n" not in finding.detail
    assert seconds < 5
