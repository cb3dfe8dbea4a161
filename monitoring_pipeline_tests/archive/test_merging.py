"""The archive keeps every trace that the source has or had, and a malformed trace does not affect others.

Expected values come from MLflow's own client, on the recorded conversations and on a store full of hostile traces.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Feedback, SpanStatusCode, Trace, TraceData, TraceState
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from monitoring_pipeline.archive import merging as archive_module
from monitoring_pipeline.archive.merging import ArchiveCounts, archive
from monitoring_pipeline.resources.delta_folders import DeltaFolders
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.sources import mlflow as mlflow_source
from monitoring_pipeline.sources.mlflow import read_traces
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES, Table
from monitoring_pipeline.traces.flatten import UnreadableTrace
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.sources.stores import HOUR, START, Faulty, Store, span_json, trace_id

WEEK = Window(START - timedelta(days=3), START + timedelta(days=4))
COMPARED = [name for name in AGENT_TRACES.schema.names if name != "created_at"]


def archive_store(lake: LakeResource, store: Store, window: Window = HOUR, **options: Any) -> ArchiveCounts:
    batches = read_traces(store.client, [store.experiment_id], window)
    return archive(lake, window, batches, {store.experiment_id: "made"}, **options)


def rows(lake: LakeResource, table: Table = AGENT_TRACES, window: Window = WEEK) -> dict[str, dict[str, Any]]:
    """The table's rows by trace id, without created_at; each trace occurs once."""
    columns = [name for name in table.schema.names if name != "created_at"]
    found = lake.read_columns(table, window, *columns).to_pylist(maps_as_pydicts="strict")
    assert max(Counter(row["trace_id"] for row in found).values(), default=1) == 1
    return {row["trace_id"]: row for row in found}


# ---- the recorded conversations ----


@dataclass(frozen=True)
class Recorded:
    counts: ArchiveCounts
    rows: dict[str, dict[str, Any]]
    of_source: dict[str, Trace]


def archive_recorded(uri: str, folder: Path, spark: SparkResource) -> Recorded:
    lake = LakeResource(location=str(folder), spark=spark)
    client = TracingClient(uri)
    experiment = MlflowClient(uri).get_experiment_by_name("airline")
    assert experiment is not None
    batches = read_traces(client, [experiment.experiment_id], RECORDED_WINDOW)
    counts = archive(lake, RECORDED_WINDOW, batches, {experiment.experiment_id: "airline"})
    archived = rows(lake, window=RECORDED_WINDOW)
    ids = list(archived)
    small_batches = (client.batch_get_traces(ids[first : first + 50]) for first in range(0, len(ids), 50))
    of_source = {trace.info.trace_id: trace for batch in small_batches for trace in batch}
    return Recorded(counts, archived, of_source)


@pytest.fixture(scope="module")
def from_database(recorded_store: str, tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> Recorded:
    return archive_recorded(recorded_store, tmp_path_factory.mktemp("database"), spark)


@pytest.fixture(scope="module")
def from_server(recorded_server: str, tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> Recorded:
    return archive_recorded(recorded_server, tmp_path_factory.mktemp("server"), spark)


@pytest.fixture(params=["from_database", "from_server"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return request.getfixturevalue(request.param)


def test_every_recorded_trace_is_archived(recorded: Recorded) -> None:
    assert recorded.counts == ArchiveCounts(read=681, written=681, quarantined=0)
    assert len(recorded.rows) == 681


def test_every_recorded_span_is_archived(recorded: Recorded) -> None:
    assert sum(len(row["spans"]) for row in recorded.rows.values()) == 2482


def test_the_recorded_errors_are_archived(recorded: Recorded) -> None:
    assert Counter(row["trace_info"]["status"] for row in recorded.rows.values()) == {"OK": 665, "ERROR": 16}


def test_a_row_contains_everything_that_the_source_returns(recorded: Recorded) -> None:
    kept = {key: json.loads(row["trace_json"]) for key, row in recorded.rows.items()}
    assert kept == {key: trace.to_dict() for key, trace in recorded.of_source.items()}


def test_a_row_restores_the_trace_that_the_server_returns(from_server: Recorded) -> None:
    traces = {key: Trace.from_json(row["trace_json"]).to_dict() for key, row in from_server.rows.items()}
    assert traces == {key: trace.to_dict() for key, trace in from_server.of_source.items()}


def test_a_row_restores_the_trace_that_the_database_returns(from_database: Recorded) -> None:
    traces = {key: Trace.from_json(row["trace_json"]).to_dict() for key, row in from_database.rows.items()}
    assert traces == {key: without_validity(trace.to_dict()) for key, trace in from_database.of_source.items()}


def without_validity(trace: dict[str, Any]) -> dict[str, Any]:
    """The trace without the `valid` of expectations, which MLflow 3.17.2 loses in Trace.from_json and over HTTP."""
    for assessment in trace["info"].get("assessments", []):
        if "expectation" in assessment:
            del assessment["valid"]
    return trace


def test_the_spans_column_agrees_with_mlflow(from_database: Recorded) -> None:
    for key, trace in from_database.of_source.items():
        assert [
            (span["span_id"], span["parent_id"], span["name"], span["span_type"], span["status"] == "ERROR")
            for span in from_database.rows[key]["spans"]
        ] == [
            (span.span_id, span.parent_id, span.name, span.span_type, span.status.status_code == SpanStatusCode.ERROR)
            for span in trace.data.spans
        ]


# The server re-encodes the JSON of span attributes, with non-ASCII characters unescaped. These columns contain it.
RESPELLED = {"spans", "request", "response", "trace_json", "content_digest"}


@pytest.mark.parametrize("column", sorted(set(COMPARED) - RESPELLED))
def test_database_and_server_return_the_same_traces(
    from_database: Recorded, from_server: Recorded, column: str
) -> None:
    assert {key: row[column] for key, row in from_database.rows.items()} == {
        key: row[column] for key, row in from_server.rows.items()
    }


@pytest.mark.parametrize("column", ["spans", "request", "response", "trace_json"])
def test_database_and_server_return_the_same_traces_except_for_json_formatting(
    from_database: Recorded, from_server: Recorded, column: str
) -> None:
    first, second = (
        {key: parsed(row[column]) for key, row in recorded.rows.items()} for recorded in (from_database, from_server)
    )
    if column == "trace_json":
        first = {key: without_validity(trace) for key, trace in first.items()}
    assert first == second


def parsed(value: Any) -> Any:
    """`value` with the JSON in its texts parsed, and the JSON in that."""
    if isinstance(value, dict):
        return {key: parsed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [parsed(entry) for entry in value]
    if isinstance(value, str) and value[:1] in ('"', "{", "["):
        try:
            return parsed(json.loads(value))
        except ValueError:
            return value
    return value


# ---- archiving again ----


@pytest.fixture
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaFolders, "commit_rows", 2)


def test_traces_deleted_at_the_source_stay(store: Store, lake: LakeResource) -> None:
    for number in (1, 2, 3):
        store.log(number)
    archive_store(lake, store)
    before = rows(lake)
    store.client.delete_traces(store.experiment_id, trace_ids=[trace_id(1), trace_id(3)])
    assert archive_store(lake, store) == ArchiveCounts(read=1)
    assert rows(lake) == before


def test_traces_deleted_at_the_source_stay_when_others_change(store: Store, lake: LakeResource) -> None:
    for number in (1, 2):
        store.log(number)
    archive_store(lake, store)
    store.client.delete_traces(store.experiment_id, trace_ids=[trace_id(1)])
    store.client.set_trace_tag(trace_id(2), "team", "blue")
    archive_store(lake, store)
    assert set(rows(lake)) == {trace_id(1), trace_id(2)}


def test_archiving_again_makes_no_commit(store: Store, lake: LakeResource) -> None:
    for number in (1, 2):
        store.log(number)
    store.log(3, [])
    archive_store(lake, store)
    versions = lake.version(AGENT_TRACES), lake.version(QUARANTINED_TRACES)
    assert archive_store(lake, store) == ArchiveCounts(read=3, written=0, quarantined=1)
    assert (lake.version(AGENT_TRACES), lake.version(QUARANTINED_TRACES)) == versions


def test_a_trace_in_progress_is_updated_when_it_finishes(store: Store, lake: LakeResource) -> None:
    store.log(1, [span_json(1, 2, parent=1)], state=TraceState.IN_PROGRESS, duration_ms=None)
    archive_store(lake, store)
    unfinished = rows(lake)[trace_id(1)]
    assert (unfinished["trace_info"]["status"], len(unfinished["spans"])) == ("IN_PROGRESS", 1)
    store.log(1, [span_json(1), span_json(1, 2, parent=1)], state=TraceState.OK)
    assert archive_store(lake, store).written == 1
    finished = rows(lake)[trace_id(1)]
    assert (finished["trace_info"]["status"], len(finished["spans"])) == ("OK", 2)


def change_tag(store: Store) -> None:
    store.client.set_trace_tag(trace_id(1), "team", "blue")


def add_feedback(store: Store) -> None:
    store.client.log_assessment(trace_id(1), Feedback(name="good", value=True))


def change_feedback(store: Store) -> None:
    [assessment] = store.client.get_trace_info(trace_id(1)).assessments
    changed = Feedback(name="first", value="changed")
    store.client.update_assessment(trace_id(1), assessment.assessment_id or "", changed)


def delete_feedback(store: Store) -> None:
    [assessment] = store.client.get_trace_info(trace_id(1)).assessments
    store.client.delete_assessment(trace_id(1), assessment.assessment_id or "")


@pytest.mark.parametrize("change", [change_tag, add_feedback, change_feedback, delete_feedback])
def test_a_trace_that_changes_is_updated_and_no_other(store: Store, lake: LakeResource, change: Any) -> None:
    store.log(1, assessments=[Feedback(name="first", value="as it was")])
    store.log(2)
    archive_store(lake, store)
    before = rows(lake)
    change(store)
    assert archive_store(lake, store).written == 1
    after = rows(lake)
    assert after[trace_id(2)] == before[trace_id(2)]
    assert json.loads(after[trace_id(1)]["trace_json"])["info"] == store.client.get_trace_info(trace_id(1)).to_dict()


def test_a_late_trace_of_an_old_hour_is_added_and_nothing_else_changes(store: Store, lake: LakeResource) -> None:
    for number in (1, 2):
        store.log(number)
        store.log(number + 3600)
    archive_store(lake, store, WEEK)
    before = rows(lake)
    store.log(3)
    assert archive_store(lake, store) == ArchiveCounts(read=3, written=1)
    after = rows(lake)
    assert after.pop(trace_id(3))["trace_hour"] == START
    assert after == before


def test_unchanged_rows_keep_their_archiving_time(store: Store, lake: LakeResource) -> None:
    store.log(1)
    store.log(2)
    archive_store(lake, store)
    times = "trace_id", "created_at"
    before = {row["trace_id"]: row["created_at"] for row in lake.read_columns(AGENT_TRACES, HOUR, *times).to_pylist()}
    store.client.set_trace_tag(trace_id(2), "team", "blue")
    archive_store(lake, store)
    after = {row["trace_id"]: row["created_at"] for row in lake.read_columns(AGENT_TRACES, HOUR, *times).to_pylist()}
    assert after[trace_id(1)] == before[trace_id(1)]
    assert after[trace_id(2)] > before[trace_id(2)]


class Killed(BaseException):
    """Simulates the end of the process."""


@pytest.mark.usefixtures("small_commits")
@pytest.mark.parametrize("read_before", [2, 4, 6, 7])
def test_a_killed_run_is_completed_by_the_next(
    store: Store, tmp_path: Path, lake: LakeResource, read_before: int
) -> None:
    for number in (1, 2, 3, 3601, 3602):
        store.log(number)
    store.log(4, [])
    store.log(3603, [])
    undisturbed = LakeResource(location=str(tmp_path / "undisturbed"), spark=lake.spark)
    archive_store(undisturbed, store, WEEK)

    def kill(read: int) -> None:
        if read >= read_before:
            raise Killed

    with pytest.raises(Killed):
        archive_store(lake, store, WEEK, on_progress=kill)
    assert rows(lake) != {}
    archive_store(lake, store, WEEK)
    assert rows(lake) == rows(undisturbed)
    assert rows(lake, QUARANTINED_TRACES) == rows(undisturbed, QUARANTINED_TRACES)


@pytest.mark.usefixtures("small_commits")
def test_progress_is_reported_after_every_commit(store: Store, lake: LakeResource) -> None:
    for number in range(1, 6):
        store.log(number)
    reported: list[tuple[int, int]] = []
    archive_store(lake, store, on_progress=lambda read: reported.append((read, len(rows(lake)))))
    assert reported == [(2, 2), (4, 4), (5, 5)]


@pytest.mark.usefixtures("small_commits")
def test_a_killed_run_leaves_no_thread_and_no_setting_behind(store: Store, lake: LakeResource) -> None:
    for number in range(1, 6):
        store.log(number)
    before = gc.get_threshold()

    def kill(read: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        archive_store(lake, store, on_progress=kill)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("archive")] == []
    assert gc.get_threshold() == before


def test_commits_are_also_limited_by_size(store: Store, lake: LakeResource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "COMMIT_CHARACTERS", 20_000)
    for number in range(1, 6):
        store.log(number, [span_json(number, attributes={"mlflow.spanInputs": json.dumps("x" * 9_000)})])
    reported: list[int] = []
    archive_store(lake, store, on_progress=reported.append)
    assert reported == [2, 4, 5]


def test_an_empty_window_leaves_the_archive_empty(store: Store, lake: LakeResource) -> None:
    assert archive_store(lake, store) == ArchiveCounts()
    assert rows(lake) == {}


def test_the_name_of_the_experiment_is_archived(store: Store, lake: LakeResource) -> None:
    store.log(1)
    archive_store(lake, store)
    assert rows(lake)[trace_id(1)]["experiment_name"] == "made"


@pytest.mark.parametrize("commit_traces", [1, 1000])
def test_a_source_that_stops_answering_raises_and_quarantines_no_trace(
    store: Store, lake: LakeResource, monkeypatch: pytest.MonkeyPatch, commit_traces: int
) -> None:
    monkeypatch.setattr(mlflow_source, "BATCH", 1)
    monkeypatch.setattr(DeltaFolders, "commit_rows", commit_traces)
    for number in (1, 2, 3):
        store.log(number)
    client: Any = Faulty(store.client)

    def batches() -> Iterator[list[Trace | UnreadableTrace]]:
        source = read_traces(client, [store.experiment_id], HOUR)
        yield next(source)
        client.fails = {"search_traces", "batch_get_traces", "get_trace", "get_trace_info", "get_experiment"}
        yield from source

    with pytest.raises(MlflowException, match="no answer"):
        archive(lake, HOUR, batches(), {})
    assert rows(lake, QUARANTINED_TRACES) == {}
    archive_store(lake, store)
    assert len(rows(lake)) == 3


# ---- hostile traces ----

Spans = Callable[[int], list[dict[str, Any]]]
Contents = Callable[[int], list[str]]
Log = Callable[[Store, int], object]
LARGE = 50_000_000 if "MONITORING_LONG_TESTS" in os.environ else 20_000_000
YEAR_9999 = 253_402_300_799_000_000_000
DEEP = "[" * 2000 + "]" * 2000
NOT_JSON = {"mlflow.spanInputs": "{broken", "mlflow.spanType": "bare", "n": 5, "list": [1], "none": None}

LOGGED_AND_ARCHIVED: dict[str, Spans] = {
    "no end time": lambda n: [span_json(n, end_time_unix_nano=None)],
    "no root span": lambda n: [span_json(n, 2, parent=77)],
    "NaN and infinity in the inputs": lambda n: [
        span_json(n, attributes={"mlflow.spanInputs": '{"a": NaN, "b": [Infinity, -Infinity]}'})
    ],
    "NUL characters": lambda n: [span_json(n, name="a\0b", attributes={"mlflow.spanOutputs": '"\0"', "\0": "\0"})],
    "an escaped lone surrogate": lambda n: [span_json(n, attributes={"mlflow.spanInputs": '"\\ud800"'})],
    "cyclic parents": lambda n: [span_json(n, 1, parent=2), span_json(n, 2, parent=1), span_json(n, 3, parent=3)],
    "attributes that are no JSON": lambda n: [span_json(n, attributes=NOT_JSON)],
    "20 MB of input": lambda n: [span_json(n, attributes={"mlflow.spanInputs": json.dumps("x" * LARGE)})],
    "end before start": lambda n: [span_json(n, end_time_unix_nano=1)],
    "formulas, templates, escape sequences and paths": lambda n: [
        span_json(n, name="=cmd|' /C calc'!A0", attributes={"mlflow.spanInputs": json.dumps("\x1b]0;x\x07\x1b[2J")}),
        span_json(n, 2, parent=1, name="{{ 7*7 }}${7*7}", attributes={"../../etc/passwd": '"@SUM(1)"'}),
        span_json(n, 3, parent=1, name="../../../etc/passwd", attributes={"mlflow.spanType": '"../../x"'}),
        span_json(n, 4, parent=1, name="[x](javascript:alert(1)) ![y](http://example.test/y.png)"),
    ],
    "markup and SQL": lambda n: [span_json(n, name="<script>alert(1)</script>'; DROP TABLE agent_traces; --")],
}
STORED_AND_ARCHIVED: dict[str, Contents] = {  # written into the database without MLflow
    "duplicated span ids": lambda n: [json.dumps(span_json(n, 1)), json.dumps(span_json(n, 1, name="other"))],
    "30,000 spans": lambda n: [json.dumps(span_json(n, index, parent=index // 2)) for index in range(1, 30_001)],
    "2,000 levels in an attribute": lambda n: [json.dumps(span_json(n, attributes={"mlflow.spanInputs": DEEP}))],
    "an empty object for a span": lambda n: ["{}"],
    "years 1970 and 9999": lambda n: [
        json.dumps(span_json(n, 1, end_time_unix_nano=YEAR_9999)),
        json.dumps(span_json(n, 2, parent=1, start_time_unix_nano=YEAR_9999, end_time_unix_nano=2)),
    ],
    "a time out of range": lambda n: [json.dumps(span_json(n, start_time_unix_nano=10**30))],
}
STORED_AND_QUARANTINED: dict[str, Contents] = {
    "truncated span": lambda n: ['{"name": "cut off'],
    "no content": lambda n: [""],
    "a number for a span": lambda n: ["5"],
    "null for a span": lambda n: ["null"],
    "2,000 levels in the span itself": lambda n: [DEEP],
    "a lone surrogate": lambda n: [json.dumps(span_json(n, name="\ud800"))],
    "text for a time": lambda n: [json.dumps(span_json(n, start_time_unix_nano="noon"))],
    "an id that is no base64": lambda n: [json.dumps(span_json(n, span_id="AAA"))],
    "one bad span of two": lambda n: [json.dumps(span_json(n)), "{oops"],
}


def log_with_feedback(*values: Any) -> Log:
    return lambda store, n: store.log(n, assessments=[Feedback(name="score", value=value) for value in values])


def log_then(statement: str, log: Log = Store.log) -> Log:
    """Logs a trace, then changes the database by `statement`, which takes the trace's id."""

    def log_and_change(store: Store, number: int) -> None:
        log(store, number)
        store.sql(statement, (trace_id(number),))

    return log_and_change


NAN = float("nan")
UNREADABLE_FEEDBACK: dict[str, Log] = {
    "NaN feedback": log_with_feedback(NAN),
    "infinite feedback": log_with_feedback(1.0, -float("inf")),
    "NaN within a feedback": log_with_feedback({"a": [1.0, NAN]}),
}
OTHERS_QUARANTINED: dict[str, Log] = {
    "no spans": lambda store, n: store.log(n, []),
    "unknown status": log_then("UPDATE trace_info SET status = 'PAUSED' WHERE request_id = ?"),
    "span that is no UTF-8": log_then("UPDATE spans SET content = CAST(x'7B22EDA080' AS TEXT) WHERE trace_id = ?"),
    "tag that is no UTF-8": log_then("UPDATE trace_tags SET value = CAST(x'EDA080' AS TEXT) WHERE request_id = ?"),
    "feedback that is no JSON": log_then(
        "UPDATE assessments SET value = '{oops' WHERE trace_id = ?", log_with_feedback(True)
    ),
    "NaN feedback and a corrupt span": log_then(
        "UPDATE spans SET content = '{oops' WHERE trace_id = ?", log_with_feedback(NAN)
    ),
}
OTHERS_ARCHIVED: dict[str, Log] = {
    "10,000 tags": lambda store, n: store.log(n, tags={f"../{index}": "=1+1" for index in range(10_000)}),
}
ARCHIVED = [*LOGGED_AND_ARCHIVED, *STORED_AND_ARCHIVED, *UNREADABLE_FEEDBACK, *OTHERS_ARCHIVED]
HOSTILE = [*ARCHIVED, *STORED_AND_QUARANTINED, *OTHERS_QUARANTINED]
# Between any two hostile traces there is a healthy one.
NUMBER = {name: 2 * index for index, name in enumerate(HOSTILE, 1)}
HEALTHY = [number + 1 for number in [0, *NUMBER.values()]]


def log_hostile(store: Store) -> None:
    for number in HEALTHY:
        store.log(number)
    for name, spans in LOGGED_AND_ARCHIVED.items():
        store.log(NUMBER[name], spans(NUMBER[name]))
    for name, contents in (STORED_AND_ARCHIVED | STORED_AND_QUARANTINED).items():
        store.log(NUMBER[name])
        store.store_spans(NUMBER[name], *contents(NUMBER[name]))
    for name, log in (UNREADABLE_FEEDBACK | OTHERS_ARCHIVED | OTHERS_QUARANTINED).items():
        log(store, NUMBER[name])


@dataclass(frozen=True)
class Hostile:
    store: Store
    lake: LakeResource
    counts: ArchiveCounts
    archived: dict[str, dict[str, Any]]
    quarantined: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def hostile(empty_store: Path, tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> Hostile:
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(empty_store, folder / "store")
    store = Store.open(folder / "store" / "mlflow.db")
    log_hostile(store)
    lake = LakeResource(location=str(folder / "lake"), spark=spark)
    counts = archive_store(lake, store)
    return Hostile(store, lake, counts, rows(lake), rows(lake, QUARANTINED_TRACES))


@pytest.mark.parametrize("name", ARCHIVED)
def test_hostile_content_is_archived(hostile: Hostile, name: str) -> None:
    place = trace_id(NUMBER[name])
    assert (place in hostile.archived, place in hostile.quarantined) == (True, False)


@pytest.mark.parametrize("name", [*STORED_AND_QUARANTINED, *OTHERS_QUARANTINED])
def test_unreadable_traces_are_quarantined_with_a_reason(hostile: Hostile, name: str) -> None:
    place = trace_id(NUMBER[name])
    assert (place in hostile.archived, place in hostile.quarantined) == (False, True)
    row = hostile.quarantined[place]
    assert row["trace_hour"] == START
    assert len(row["reason"]) > 5
    assert place in row["raw"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("NaN feedback", ["null"]),
        ("infinite feedback", ["1.0", "null"]),
        ("NaN within a feedback", ["null"]),
    ],
)
def test_feedback_that_json_cannot_carry_is_marked_and_noted(hostile: Hostile, name: str, values: list[str]) -> None:
    row = hostile.archived[trace_id(NUMBER[name])]
    found = sorted(row["assessments"], key=lambda assessment: assessment["value"])
    assert [assessment["value"] for assessment in found] == values
    assert [assessment["error_code"] for assessment in found if assessment["value"] == "null"] == ["UNREADABLE_VALUE"]
    assert len(row["implausible"]) == 1
    assert Trace.from_json(row["trace_json"]).info.trace_id == row["trace_id"]


def test_no_hostile_trace_is_dropped(hostile: Hostile) -> None:
    logged = {trace_id(number) for number in [*HEALTHY, *NUMBER.values()]}
    assert hostile.archived.keys() | hostile.quarantined.keys() == logged
    assert hostile.counts == ArchiveCounts(len(logged), len(hostile.archived), len(hostile.quarantined))


def test_healthy_neighbours_are_unharmed(hostile: Hostile) -> None:
    given = hostile.store.client.store.batch_get_traces([trace_id(number) for number in HEALTHY])
    kept = [json.loads(hostile.archived[trace_id(number)]["trace_json"]) for number in HEALTHY]
    assert {trace["info"]["trace_id"]: trace for trace in kept} == {trace.trace_id: trace.to_dict() for trace in given}


def as_json(value: object) -> str:
    """The attribute itself if it is a JSON text, as MLflow's clients store it, else its JSON."""
    try:
        json.loads(str(value) if isinstance(value, str) else "no text")
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


@pytest.mark.parametrize("name", LOGGED_AND_ARCHIVED)
def test_archived_hostile_traces_are_lossless(hostile: Hostile, name: str) -> None:
    place = trace_id(NUMBER[name])
    given = hostile.store.client.store.get_trace(place, allow_partial=True).to_dict()
    for span in given["data"]["spans"]:
        span["attributes"] = {key: as_json(value) for key, value in span["attributes"].items()}
    assert Trace.from_json(hostile.archived[place]["trace_json"]).to_dict() == given


def test_all_30000_spans_of_a_trace_are_archived(hostile: Hostile) -> None:
    spans = hostile.archived[trace_id(NUMBER["30,000 spans"])]["spans"]
    assert {span["span_id"] for span in spans} == {f"{index:016x}" for index in range(1, 30_001)}


def test_spans_with_the_same_id_are_both_archived(hostile: Hostile) -> None:
    spans = hostile.archived[trace_id(NUMBER["duplicated span ids"])]["spans"]
    assert [(span["span_id"], span["name"]) for span in spans] == [(f"{1:016x}", "span 1"), (f"{1:016x}", "other")]


def test_nul_characters_are_kept(hostile: Hostile) -> None:
    [span] = hostile.archived[trace_id(NUMBER["NUL characters"])]["spans"]
    assert span["name"] == "a\0b"
    assert json.loads(span["outputs"]) == '"\0"'
    assert {json.loads(value) for key, value in span["tags"].items() if key == "\0"} == {"\0"}


def test_hostile_rows_pass_through_the_engine_unchanged(hostile: Hostile) -> None:
    names = ["NUL characters", "markup and SQL", "cyclic parents", "an empty object for a span"]
    wanted = [trace_id(NUMBER[name]) for name in names]
    traces = hostile.lake.read(AGENT_TRACES, HOUR)
    found = traces.where(traces["trace_id"].isin(*wanted)).select("trace_id", "trace_json").collect()
    assert {row.trace_id: row.trace_json for row in found} == {
        key: hostile.archived[key]["trace_json"] for key in wanted
    }


def test_archiving_hostile_traces_again_makes_no_commit(hostile: Hostile) -> None:
    versions = hostile.lake.version(AGENT_TRACES), hostile.lake.version(QUARANTINED_TRACES)
    archive_store(hostile.lake, hostile.store)
    assert (hostile.lake.version(AGENT_TRACES), hostile.lake.version(QUARANTINED_TRACES)) == versions


@pytest.mark.parametrize("window", [HOUR, WEEK])
def test_a_repaired_trace_leaves_quarantine(store: Store, lake: LakeResource, window: Window) -> None:
    for number in (1, 2, 3602):
        store.log(number)
        store.store_spans(number, "{oops")
    archive_store(lake, store, WEEK)
    assert set(rows(lake, QUARANTINED_TRACES)) == {trace_id(1), trace_id(2), trace_id(3602)}
    store.store_spans(1, json.dumps(span_json(1)))
    assert archive_store(lake, store, window).written == 1
    assert set(rows(lake)) == {trace_id(1)}
    assert set(rows(lake, QUARANTINED_TRACES)) == {trace_id(2), trace_id(3602)}


@pytest.mark.parametrize("order", [(-1, 0), (0, -1)], ids=["its new hour first", "its old hour first"])
def test_a_repaired_trace_that_moved_to_an_earlier_hour_leaves_quarantine(
    store: Store, lake: LakeResource, order: tuple[int, int]
) -> None:
    store.log(1)
    store.store_spans(1, "{oops")
    archive_store(lake, store)
    earlier = START - timedelta(hours=1)
    store.sql("UPDATE trace_info SET timestamp_ms = ?", (int(earlier.timestamp() * 1000),))
    store.store_spans(1, json.dumps(span_json(1, started=earlier)))
    for hours in order:
        archive_store(lake, store, Window(HOUR.start + timedelta(hours=hours), HOUR.end + timedelta(hours=hours)))
    assert rows(lake, QUARANTINED_TRACES) == {}
    assert {key: row["trace_hour"] for key, row in rows(lake).items()} == {trace_id(1): earlier}


def test_a_quarantined_trace_deleted_at_the_source_stays(store: Store, lake: LakeResource) -> None:
    store.log(1, [])
    archive_store(lake, store)
    before = rows(lake, QUARANTINED_TRACES)
    store.client.delete_traces(store.experiment_id, trace_ids=[trace_id(1)])
    archive_store(lake, store)
    assert rows(lake, QUARANTINED_TRACES) == before != {}


def test_an_archived_trace_that_becomes_unreadable_stays_as_it_was_and_is_in_quarantine(
    store: Store, lake: LakeResource
) -> None:
    store.log(1)
    archive_store(lake, store)
    before = rows(lake)
    store.store_spans(1, "{oops")
    assert archive_store(lake, store) == ArchiveCounts(read=1, quarantined=1)
    assert rows(lake) == before
    assert list(rows(lake, QUARANTINED_TRACES)) == [trace_id(1)]
    store.store_spans(1, json.dumps(span_json(1, name="repaired")))
    archive_store(lake, store)
    assert rows(lake) != before
    assert rows(lake, QUARANTINED_TRACES) == {}


def test_a_trace_repaired_after_a_kill_leaves_quarantine(store: Store, lake: LakeResource) -> None:
    store.log(1)
    store.store_spans(1, "{oops")
    archive_store(lake, store)
    store.store_spans(1, json.dumps(span_json(1)))

    def kill(read: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        archive_store(lake, store, on_progress=kill)
    archive_store(lake, store)
    assert set(rows(lake)) == {trace_id(1)}
    assert rows(lake, QUARANTINED_TRACES) == {}


def test_a_reason_that_is_not_valid_text_is_stored_escaped(lake: LakeResource) -> None:
    unreadable = UnreadableTrace("tr-1", START, "bad \ud800", "raw \udfff")
    archive(lake, HOUR, [[unreadable]], {})
    row = rows(lake, QUARANTINED_TRACES)["tr-1"]
    assert (row["reason"], row["raw"]) == ("bad \\ud800", "raw \\udfff")


def test_a_trace_that_raises_any_error_while_flattened_is_quarantined(store: Store, lake: LakeResource) -> None:
    class Raising(TraceData):
        def to_dict(self) -> dict[str, Any]:
            raise ZeroDivisionError("odd")

    store.log(1)
    store.log(2)
    [batch] = read_traces(store.client, [store.experiment_id], HOUR)
    first, second = batch
    assert isinstance(first, Trace)
    archive(lake, HOUR, [[Trace(first.info, Raising(first.data.spans)), second]], {})
    assert rows(lake, QUARANTINED_TRACES)[trace_id(1)]["reason"] == "ZeroDivisionError: odd"
    assert set(rows(lake)) == {trace_id(2)}
