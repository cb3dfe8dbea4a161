"""Results as feedback in MLflow: over a database and over a server, once, whatever fails in between."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Assessment, AssessmentSource, Feedback, Span, Trace
from mlflow.genai.scorers import scorer as as_scorer
from mlflow.tracing.client import TracingClient

from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring import write_back as module
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.scoring.runner import assessment_id
from monitoring_pipeline.scoring.write_back import WriteBackCounts, unsent, write_back
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, WRITTEN_BACK
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.servers import MlflowServer, running
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store, span_json, traces_of

NUMBERS = itertools.count()  # of trace numbers, so that tests can share a store
JUDGED = datetime(2026, 1, 1, 6, 30, 0, 123456, tzinfo=UTC)
Write = Callable[[], WriteBackCounts]


@as_scorer(timeout=0)
def polite(outputs: Any) -> bool:
    return True


POLITE = ConfiguredScorer("polite", polite, "d" * 16, 1.0, None)
JUDGE = ConfiguredScorer("judge", polite, "e" * 16, 0.5, None, model="openai:/gpt-4.1-mini")


def result(trace_id: str, scorer: ConfiguredScorer = POLITE, **changes: Any) -> dict[str, Any]:
    """A row of assessments."""
    return {
        "trace_id": trace_id,
        "trace_hour": START,
        "experiment_id": "1",
        "scorer": scorer.name,
        "scorer_digest": scorer.digest,
        "value": "true",
        "score": 1.0,
        "rationale": "it said please",
        "source_type": "LLM_JUDGE" if scorer.model else "CODE",
        "sample_rate": scorer.sample_rate,
        "assessed_at": JUDGED,
        "duration_ms": 1.0,
        "assessment_id": assessment_id(trace_id, scorer),
        "dagster_run_id": "run-1",
        **changes,
    }


def add(lake: LakeResource, *rows: dict[str, Any]) -> None:
    lake.upsert(ASSESSMENTS, from_dicts(ASSESSMENTS, list(rows)))


def recorded(lake: LakeResource) -> dict[str, str]:
    """The recorded outcomes of each trace."""
    rows = lake.read_columns(WRITTEN_BACK, HOUR, "trace_id", "outcome").to_pylist()
    return {row["trace_id"]: row["outcome"] for row in rows}


def forget(lake: LakeResource) -> None:
    """Simulate a crash between logging and recording."""
    lake.replace(WRITTEN_BACK, HOUR, WRITTEN_BACK.schema.empty_table())


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[MlflowServer]:
    with running(store.uri, store.file.parent) as server:
        yield server


@pytest.fixture(params=["database", "server"])
def tracking(request: pytest.FixtureRequest, store: Store) -> TrackingResource:
    """The store, directly and through a server."""
    uri = store.uri if request.param == "database" else request.getfixturevalue("server").uri
    return TrackingResource(tracking_uri=uri)


@pytest.fixture
def write(lake: LakeResource, tracking: TrackingResource) -> Write:
    return lambda: write_back(lake, tracking, [POLITE, JUDGE], HOUR)


def log_traces(store: Store, count: int) -> list[str]:
    return [store.log(next(NUMBERS)) for _ in range(count)]


def feedback_on(store: Store, trace_id: str) -> list[Assessment]:
    return store.client.get_trace_info(trace_id).assessments


# Once


def test_every_result_becomes_feedback_on_its_trace(store: Store, lake: LakeResource, write: Write) -> None:
    traces = log_traces(store, 3)
    add(lake, *(result(trace) for trace in traces), result(traces[0], JUDGE, value='"yes"'))
    assert write() == WriteBackCounts(written=4)
    assert [(found.name, found.feedback.value) for found in feedback_on(store, traces[1]) if found.feedback] == [
        ("polite", True)
    ]
    assert {found.assessment_id for found in feedback_on(store, traces[0])} == {
        assessment_id(traces[0], POLITE),
        assessment_id(traces[0], JUDGE),
    }


def test_running_again_sends_and_records_nothing(store: Store, lake: LakeResource, write: Write) -> None:
    [trace] = log_traces(store, 1)
    add(lake, result(trace))
    write()
    before = feedback_on(store, trace), lake.version(WRITTEN_BACK)
    assert write() == WriteBackCounts()
    assert (feedback_on(store, trace), lake.version(WRITTEN_BACK)) == before


def test_results_left_unrecorded_by_a_crash_are_not_sent_twice(store: Store, lake: LakeResource, write: Write) -> None:
    traces = log_traces(store, 3)
    add(lake, *(result(trace) for trace in traces[:2]))
    write()
    forget(lake)
    add(lake, result(traces[2]))
    before = feedback_on(store, traces[0])
    assert write() == WriteBackCounts(written=1, already_there=2)
    assert feedback_on(store, traces[0]) == before
    assert recorded(lake) == dict.fromkeys(traces, "written")
    assert write() == WriteBackCounts()


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_new_result_replaces_the_previous_one(
    store: Store, lake: LakeResource, write: Write, is_recorded: bool
) -> None:
    [trace] = log_traces(store, 1)
    add(lake, result(trace))
    write()
    if not is_recorded:
        forget(lake)
    later = JUDGED + timedelta(days=1)
    add(lake, result(trace, value="false", rationale=None, assessed_at=later, dagster_run_id="run-2"))
    assert write() == WriteBackCounts(written=1)
    [found] = feedback_on(store, trace)
    assert found.feedback is not None
    assert (found.feedback.value, found.rationale or None, found.valid, found.overrides) == (False, None, True, None)
    assert found.metadata is not None
    assert found.metadata["monitoring_pipeline.dagster_run_id"] == "run-2"
    assert write() == WriteBackCounts()


class Changing:
    """Two traces, archived, scored and written back after each change of the first."""

    def __init__(self, store: Store, tracking: TrackingResource, lake: LakeResource):
        self.store, self.tracking, self.lake = store, tracking, lake
        self.changing, self.same = log_traces(store, 2)
        self.verdicts: dict[str, Any] = {self.changing: 1.0, self.same: 1.0}
        self.spans = itertools.count(2)

        @as_scorer(timeout=0)
        def given(trace: Trace) -> Any:
            verdict = self.verdicts.get(trace.info.trace_id)
            if isinstance(verdict, Exception):
                raise verdict
            return verdict

        self.scorer = ConfiguredScorer("given", given, "f" * 16, 1.0, None)
        self.run()

    def change(self, verdict: Any) -> None:
        """A further span arrives, and the scorer returns or raises the verdict for the trace."""
        self.verdicts[self.changing] = verdict
        span = span_json(int(self.changing.removeprefix("tr-"), 16), next(self.spans), parent=1)
        self.store.client.log_spans(self.store.experiment_id, [Span.from_dict(span)])

    def run(self) -> WriteBackCounts:
        archive(self.lake, HOUR, [traces_of(self.tracking, HOUR)], {})
        score_window(self.lake, self.scorer, HOUR, "run")
        return write_back(self.lake, self.tracking, [self.scorer], HOUR)

    def in_mlflow(self, trace_id: str) -> list[Any]:
        found = feedback_on(self.store, trace_id)
        return [one.feedback.value for one in found if one.name == "given" and one.feedback]


@pytest.mark.parametrize("verdict", [None, ValueError("too long")], ids=["no value", "an error"])
def test_feedback_is_withdrawn_while_the_changed_trace_has_no_value(
    store: Store, tracking: TrackingResource, lake: LakeResource, verdict: Any
) -> None:
    made = Changing(store, tracking, lake)
    human = Feedback(name="given", value="a person's", source=AssessmentSource("HUMAN", "ann"))
    store.client.log_assessment(made.changing, human)
    made.change(verdict)
    assert made.run() == WriteBackCounts(withdrawn=1)
    assert (made.in_mlflow(made.changing), made.in_mlflow(made.same)) == (["a person's"], [1.0])
    assert recorded(lake) == {made.changing: "withdrawn", made.same: "written"}
    assert made.run() == WriteBackCounts()
    made.change(0.5)
    assert made.run() == WriteBackCounts(written=1)
    assert made.in_mlflow(made.changing) == ["a person's", 0.5]
    made.change(verdict)
    assert made.run() == WriteBackCounts(withdrawn=1)


def test_feedback_that_someone_removed_is_recorded_as_withdrawn(
    store: Store, tracking: TrackingResource, lake: LakeResource
) -> None:
    made = Changing(store, tracking, lake)
    store.client.delete_assessment(made.changing, assessment_id(made.changing, made.scorer))
    made.change(None)
    assert made.run() == WriteBackCounts(withdrawn=1)


def test_a_withdrawal_that_fails_stays_pending(
    store: Store, tracking: TrackingResource, lake: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Changing(store, tracking, lake)
    made.change(None)
    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, "delete_assessment", _raise_oserror)
        counts = made.run()
    assert (counts.pending, counts.withdrawn, counts.reason) == (1, 0, "OSError: out of order")
    assert unsent(lake, [made.scorer], HOUR)["value"].to_pylist() == [None]
    assert made.run() == WriteBackCounts(withdrawn=1)


def _raise_oserror(*arguments: object) -> None:
    raise OSError("out of order")


def test_feedback_of_a_newer_result_is_not_withdrawn(
    store: Store, tracking: TrackingResource, lake: LakeResource
) -> None:
    made = Changing(store, tracking, lake)
    later = result(made.changing, made.scorer, assessed_at=datetime.now(UTC) + timedelta(minutes=1), value="0.25")
    [newer] = from_dicts(ASSESSMENTS, [later]).to_pylist()
    store.client.update_assessment(made.changing, newer["assessment_id"], module.as_feedback(newer, None))
    made.change(None)
    assert made.run() == WriteBackCounts(already_there=1)
    assert made.in_mlflow(made.changing) == [0.25]


def test_only_results_of_current_digests_without_an_error_are_sent(
    store: Store, lake: LakeResource, write: Write
) -> None:
    [trace] = log_traces(store, 1)
    add(
        lake,
        result(trace, scorer_digest="0" * 16, assessment_id="old digest"),
        result(trace, replace(POLITE, name="removed")),
        result(trace, JUDGE, value=None, error_code="MODEL_UNAVAILABLE", error_message="429"),
    )
    assert write() == WriteBackCounts()
    assert feedback_on(store, trace) == []


def test_only_the_window_is_sent(store: Store, lake: LakeResource, write: Write) -> None:
    traces = log_traces(store, 2)
    add(lake, result(traces[0]), result(traces[1], trace_hour=HOUR.end))
    assert write() == WriteBackCounts(written=1)
    assert feedback_on(store, traces[1]) == []


def test_results_are_recorded_as_they_are_sent(
    store: Store, lake: LakeResource, tracking: TrackingResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_RESULTS", 2)
    add(lake, *(result(trace) for trace in log_traces(store, 5)))
    reported: list[tuple[int, int]] = []
    write_back(lake, tracking, [POLITE], HOUR, lambda counts: reported.append((counts.written, len(recorded(lake)))))
    assert reported == [(2, 2), (4, 4), (5, 5)]


# Content of the feedback

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
SCALAR = st.booleans() | NUMBER | TEXT
ROW = st.fixed_dictionaries(
    {
        "value": (SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(TEXT, SCALAR, max_size=3)).map(json.dumps),
        "rationale": st.none() | TEXT,
        "scorer_version": st.none() | st.integers(1, 10**6),
        "cost_usd": st.none() | st.floats(0, 100),
        "input_tokens": st.none() | st.integers(0, 2**40),
        "output_tokens": st.none() | st.integers(0, 2**40),
        "session_id": st.none() | TEXT,
        "sample_rate": st.floats(0, 1),
        "assessed_at": st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(  # noqa: DTZ001
            lambda moment: moment.replace(tzinfo=UTC)
        ),
    }
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(ROW, min_size=1, max_size=6), is_judge=st.booleans())
def test_feedback_read_back_equals_the_row(
    store: Store,
    tracking: TrackingResource,
    spark: SparkResource,
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[dict[str, Any]],
    is_judge: bool,
) -> None:
    scorer = JUDGE if is_judge else POLITE
    rows = [
        result(trace, scorer, **change) for trace, change in zip(log_traces(store, len(changes)), changes, strict=True)
    ]
    lake = LakeResource(location=str(tmp_path_factory.mktemp("lake")), spark=spark)
    add(lake, *rows)
    assert write_back(lake, tracking, [scorer], HOUR) == WriteBackCounts(written=len(rows))
    client = TracingClient(tracking.tracking_uri)
    for row in rows:
        [found] = client.get_trace_info(row["trace_id"]).assessments
        assert isinstance(found, Feedback)
        assert found.assessment_id == row["assessment_id"]
        assert found.name == row["scorer"]
        expected = json.loads(row["value"])
        assert found.value == expected
        assert isinstance(found.value, bool) == isinstance(expected, bool)
        assert (found.rationale or "") == (row["rationale"] or "").replace("\0", "\ufffd")
        assert (found.source.source_type, found.source.source_id) == (
            ("LLM_JUDGE", "openai:/gpt-4.1-mini") if is_judge else ("CODE", "monitoring-pipeline/polite")
        )
        assert found.create_time_ms is not None
        assert abs(found.create_time_ms / 1000 - row["assessed_at"].timestamp()) <= 0.001
        assert found.metadata == {
            "mlflow.assessment.scorerName": row["scorer"],
            "mlflow.assessment.scorerDigest": row["scorer_digest"],
            "monitoring_pipeline.assessed_at": row["assessed_at"].isoformat(timespec="microseconds"),
            "monitoring_pipeline.dagster_run_id": "run-1",
            "monitoring_pipeline.sample_rate": str(row["sample_rate"]),
            **{
                key: str(row[column])
                for key, column in {
                    "mlflow.assessment.scorerVersion": "scorer_version",
                    "mlflow.assessment.judgeCost": "cost_usd",
                    "mlflow.assessment.judgeInputTokens": "input_tokens",
                    "mlflow.assessment.judgeOutputTokens": "output_tokens",
                    "mlflow.trace.session": "session_id",
                }.items()
                if row[column] is not None
            },
        }


# Results that cannot be sent


def test_results_of_a_deleted_trace_are_recorded_as_gone(store: Store, lake: LakeResource, write: Write) -> None:
    kept, deleted = log_traces(store, 2)
    store.client.delete_traces(store.experiment_id, trace_ids=[deleted])
    add(lake, result(kept), result(deleted))
    assert write() == WriteBackCounts(written=1, gone=1)
    assert recorded(lake) == {kept: "written", deleted: "gone"}
    assert write() == WriteBackCounts()


@pytest.mark.parametrize("value", ["[" * 120 + "]" * 120, r'"\ud800"', "1" + "0" * 400])
def test_a_value_that_no_server_can_show_is_refused_and_does_not_block_others(
    store: Store, lake: LakeResource, write: Write, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    first, bad, last = log_traces(store, 3)
    add(lake, result(first), result(bad, value=value), result(last))
    assert write() == WriteBackCounts(written=2, refused=1)
    assert recorded(lake) == {first: "written", bad: "refused", last: "written"}
    assert assessment_id(bad, POLITE) in caplog.text
    assert write() == WriteBackCounts()


def test_a_refused_result_is_not_sent_again(store: Store, lake: LakeResource, write: Write) -> None:
    first, bad = log_traces(store, 2)
    add(lake, result(first), result(bad))
    write()
    store.sql(
        f"CREATE TRIGGER frozen BEFORE UPDATE ON assessments WHEN NEW.trace_id = '{bad}' "
        "BEGIN SELECT RAISE(ABORT, 'frozen'); END"
    )
    later = JUDGED + timedelta(days=1)
    add(lake, result(first, assessed_at=later), result(bad, assessed_at=later))
    try:
        assert write() == WriteBackCounts(written=1, refused=1)
    finally:
        store.sql("DROP TRIGGER frozen")
    assert recorded(lake) == {first: "written", bad: "refused"}
    assert write() == WriteBackCounts()


# A store that fails


def test_a_result_that_fails_stays_pending_and_does_not_block_others(
    store: Store, lake: LakeResource, write: Write
) -> None:
    traces = log_traces(store, 4)
    add(lake, *(result(trace) for trace in traces))
    store.sql(
        f"CREATE TRIGGER broken BEFORE INSERT ON assessments WHEN NEW.trace_id = '{traces[1]}' "
        "BEGIN SELECT RAISE(ABORT, 'broken'); END"
    )
    try:
        counts = write()
    finally:
        store.sql("DROP TRIGGER broken")
    assert (counts.written, counts.pending) == (3, 1)
    assert counts.reason
    assert recorded(lake) == dict.fromkeys({*traces} - {traces[1]}, "written")
    assert write() == WriteBackCounts(written=1)


def test_a_store_that_accepts_nothing_does_not_get_every_result(
    store: Store, lake: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAILURES", 3)
    traces = log_traces(store, 10)
    add(lake, *(result(trace) for trace in traces))
    attempts: list[str] = []
    log_assessment = TracingClient.log_assessment

    def counted(self: TracingClient, trace_id: str, assessment: Assessment) -> Assessment:
        attempts.append(trace_id)
        return log_assessment(self, trace_id, assessment)

    monkeypatch.setattr(TracingClient, "log_assessment", counted)
    store.sql("CREATE TRIGGER shut BEFORE INSERT ON assessments BEGIN SELECT RAISE(ABORT, 'shut'); END")
    try:
        counts = write_back(lake, TrackingResource(tracking_uri=store.uri), [POLITE], HOUR)
    finally:
        store.sql("DROP TRIGGER shut")
    assert (counts.written, counts.pending) == (0, 10)
    assert len(attempts) == 3


def test_an_unreadable_assessment_on_a_trace_does_not_block_others(
    store: Store, lake: LakeResource, write: Write
) -> None:
    traces = log_traces(store, 3)
    store.client.log_assessment(traces[1], Feedback(name="odd", value=1, source=AssessmentSource("CODE", "x")))
    store.sql("UPDATE assessments SET value = '{' WHERE trace_id = ? AND name = 'odd'", (traces[1],))
    add(lake, *(result(trace) for trace in traces))
    assert write() == WriteBackCounts(written=3)
    forget(lake)
    assert write() == WriteBackCounts(already_there=3)


def test_a_concurrent_faster_run_is_detected(
    store: Store, lake: LakeResource, tracking: TrackingResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    [trace] = log_traces(store, 1)
    add(lake, result(trace))
    known = module._Sender._known

    def overtaken(self: module._Sender, rows: list[dict[str, Any]]) -> Any:
        before = known(self, rows)
        store.client.log_assessment(trace, module.as_feedback(rows[0], None))
        return before

    monkeypatch.setattr(module._Sender, "_known", overtaken)
    assert write_back(lake, tracking, [POLITE], HOUR) == WriteBackCounts(already_there=1)
    assert len(feedback_on(store, trace)) == 1


def test_a_server_that_stops_midway_gets_the_rest_later(
    store: Store, server: MlflowServer, lake: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_RESULTS", 2)
    tracking = TrackingResource(tracking_uri=server.uri)
    traces = log_traces(store, 6)
    add(lake, *(result(trace) for trace in traces))
    try:
        midway = write_back(lake, tracking, [POLITE], HOUR, on_progress=lambda counts: server.stop())
        assert len(recorded(lake)) == 2
        started = time.monotonic()
        down = write_back(lake, tracking, [POLITE], HOUR)
        assert time.monotonic() - started < 5
    finally:
        server.stop()
        server.start()
    assert (midway.written, midway.pending) == (2, 4)
    assert (down.written, down.pending) == (0, 4)
    assert midway.reason
    assert down.reason
    assert write_back(lake, tracking, [POLITE], HOUR) == WriteBackCounts(written=4)
    assert [len(feedback_on(store, trace)) for trace in traces] == [1] * 6


PAGE = b"<html>no</html>"


@pytest.fixture(params=[(500, PAGE), (503, PAGE), (429, PAGE), (404, PAGE), (200, PAGE), (200, b"")])
def broken_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that is broken or not MLflow's: it always returns the same error, with a Retry-After of an hour."""
    status, body = request.param

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_server_that_answers_with_errors_ends_the_run_soon(broken_server: str, lake: LakeResource) -> None:
    add(lake, *(result(f"tr-{number}") for number in range(100)))
    started = time.monotonic()
    counts = write_back(lake, TrackingResource(tracking_uri=broken_server), [POLITE], HOUR)
    assert time.monotonic() - started < 5
    assert counts.pending == 100
    assert counts.reason
    assert recorded(lake) == {}


def test_a_server_that_never_answers_ends_the_run_soon(lake: LakeResource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    add(lake, *(result(f"tr-{number}") for number in range(100)))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        counts = write_back(lake, TrackingResource(tracking_uri=uri), [POLITE], HOUR)
    assert time.monotonic() - started < 10
    assert counts.pending == 100
    assert {name: os.environ.get(name) for name in REQUEST_SETTINGS} == dict(
        zip(REQUEST_SETTINGS, ("7", "1", None), strict=True)
    )


REQUEST_SETTINGS = (
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER",
)


def test_a_missing_server_is_named_by_its_address_without_the_password(lake: LakeResource) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    add(lake, result("tr-1"), result("tr-2"))
    uri = f"http://someone:secret@127.0.0.1:{port}"
    counts = write_back(lake, TrackingResource(tracking_uri=uri), [POLITE], HOUR)
    assert counts.pending == 2
    assert counts.reason is not None
    assert f"127.0.0.1:{port}" in counts.reason
    assert "secret" not in counts.reason


# Back into the archive


def test_feedback_that_returns_to_the_archive_triggers_nothing(
    store: Store, lake: LakeResource, tracking: TrackingResource
) -> None:
    start = START + timedelta(days=next(NUMBERS))  # the test's own hour
    window = Window(start, start + timedelta(hours=1))
    traces = [store.log(next(NUMBERS), started=start + timedelta(minutes=minute)) for minute in range(3)]

    def digests() -> dict[str, str]:
        archive(lake, window, [traces_of(tracking, window)], tracking.experiment_names())
        rows = lake.read_columns(AGENT_TRACES, window, "trace_id", "content_digest").to_pylist()
        return {row["trace_id"]: row["content_digest"] for row in rows}

    without = digests()
    assert set(without) == set(traces)
    assert score_window(lake, POLITE, window, "run").scored == 3
    assert write_back(lake, tracking, [POLITE], window) == WriteBackCounts(written=3)

    with_feedback = digests()
    assert all(with_feedback[trace] != without[trace] for trace in traces)
    version = lake.version(AGENT_TRACES)
    assert score_window(lake, POLITE, window, "run").seen == 0
    assert unsent(lake, [POLITE], window).num_rows == 0
    assert write_back(lake, tracking, [POLITE], window) == WriteBackCounts()
    assert digests() == with_feedback
    assert lake.version(AGENT_TRACES) == version
