"""Traces read from MLflow's database equal those that MLflow's own client reads."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Expectation, Feedback, IssueReference, TraceState
from mlflow.entities.assessment_error import AssessmentError
from mlflow.store.tracking.dbmodels import models
from mlflow.tracing.client import TracingClient
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources import mlflow as mlflow_source
from monitoring_pipeline.sources import mlflow_sql
from monitoring_pipeline.sources.mlflow_database import experiment_names, opened
from monitoring_pipeline.sources.mlflow_sql import read_traces
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.archive.test_merging import log_hostile, rows
from monitoring_pipeline_tests.conftest import RECORDED, RECORDED_WINDOW
from monitoring_pipeline_tests.postgres import PASSWORD, PostgresServer, running
from monitoring_pipeline_tests.servers import free_port
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store, span_json, trace_id

DATABASES = ["sqlite", "postgres"]
SQL = ArchiveSettings(source="mlflow-sql")
COPIED = (
    *(models.SqlExperiment, models.SqlTraceInfo, models.SqlTraceTag, models.SqlTraceMetadata),
    *(models.SqlAssessments, models.SqlSpan),
)
BULK = 1100
BULK_WINDOW = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server with an empty MLflow store in its database `empty`."""
    with running() as server:
        MlflowClient(server.create("empty")).search_experiments()
        _let_go(server.address("empty"))
        yield server


def copied_to(server: PostgresServer, name: str, sqlite_uri: str) -> str:
    """The traces of a SQLite store in a separate PostgreSQL store, except for values PostgreSQL cannot store."""
    address = server.copy("empty", name)
    source, target = sa.create_engine(sqlite_uri), sa.create_engine(address, poolclass=sa.NullPool)
    with target.begin() as connection:
        connection.execute(sa.delete(models.SqlExperiment))
    for model in COPIED:
        columns = [column for column in model.__table__.columns if column.computed is None]
        with source.connect() as reading, target.begin() as writing:
            found = [
                {column.name: _held(column, row[column.name]) for column in columns}
                for row in reading.execute(sa.select(*columns)).mappings()
            ]
            if found:
                writing.execute(sa.insert(model.__table__), found)
    source.dispose()
    return address


def _held(column: sa.Column[Any], value: object) -> object:
    return value.replace("\0", "")[: getattr(column.type, "length", None)] if isinstance(value, str) else value


def _let_go(uri: str) -> None:
    """Close the connections of MLflow's client in this process."""
    TracingClient(uri).store.engine.dispose()


@dataclass(frozen=True)
class Archived:
    rows: dict[str, dict[str, Any]]
    quarantined: dict[str, dict[str, Any]]


def archived(lake: LakeResource, window: Window, batches: Iterable[Sequence[Any]]) -> Archived:
    archive(lake, window, batches, {})
    compared = [name for name in AGENT_TRACES.schema.names if name != "created_at"]
    found = lake.read_columns(AGENT_TRACES, window, *compared).to_pylist()  # a map as its pairs, in their order
    return Archived({row["trace_id"]: row for row in found}, rows(lake, QUARANTINED_TRACES, window))


def both(uri: str, window: Window, folder: Path, spark: SparkResource) -> tuple[Archived, Archived]:
    """The archives of the traces read from the database and by MLflow's client."""
    with opened(uri) as database:
        ids = list(experiment_names(database, []))
        found = archived(
            LakeResource(location=str(folder / "sql"), spark=spark), window, read_traces(database, ids, window, uri)
        )
    batches = mlflow_source.read_traces(TracingClient(uri), ids, window)
    return found, archived(LakeResource(location=str(folder / "api"), spark=spark), window, batches)


def read(uri: str, window: Window = HOUR) -> list[Any]:
    with opened(uri) as database:
        ids = list(experiment_names(database, []))
        return [trace for batch in read_traces(database, ids, window, uri) for trace in batch]


def ids_of(traces: list[Any]) -> list[str]:
    return [trace.row["trace_id"] if isinstance(trace, FlatTrace) else trace.trace_id for trace in traces]


# ---- the same rows ----


@pytest.fixture(scope="module", params=DATABASES)
def recorded(request: pytest.FixtureRequest, recorded_store: str) -> str:
    if request.param == "sqlite":
        return recorded_store
    return copied_to(request.getfixturevalue("postgres"), "recorded", recorded_store)


def test_recorded_traces_equal_those_of_mlflow(recorded: str, tmp_path: Path, spark: SparkResource) -> None:
    found, given = both(recorded, RECORDED_WINDOW, tmp_path, spark)
    assert len(found.rows) == 681
    assert found == given


def test_recorded_traces_need_no_entities(recorded: str) -> None:
    assert {type(trace) for trace in read(recorded, RECORDED_WINDOW)} == {FlatTrace}


@pytest.fixture(scope="module", params=DATABASES)
def bulk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    maker = RECORDED / "tools" / "bulk_traces.py"
    if not maker.is_file():
        pytest.skip(f"the maker of many traces is not at {maker}")
    if request.param == "sqlite":
        uri = f"sqlite:///{tmp_path_factory.mktemp('bulk') / 'mlflow.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        uri = server.copy("empty", "bulk")
    command = [sys.executable, maker, "sql", str(BULK), uri, "--hours", "20"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path_factory.mktemp("maker"))
    return uri


def test_many_traces_equal_those_of_mlflow(bulk: str, tmp_path: Path, spark: SparkResource) -> None:
    found, given = both(bulk, BULK_WINDOW, tmp_path, spark)
    assert len(found.rows) == BULK > 2 * mlflow_sql.PAGE
    assert found == given


HUMAN = AssessmentSource(source_type="HUMAN", source_id="ada")
USAGE = {
    "mlflow.trace.tokenUsage": '{"input_tokens": 3, "output_tokens": 0, "cache_read_input_tokens": 1}',
    "mlflow.trace.cost": '{"input_cost": 1e-07, "output_cost": 0.1, "total_cost": 0.30000000000000004}',
    "mlflow.trace.session": "s1",
    "mlflow.trace.user": "ada",
    "mlflow.sourceRun": "run-1",
}
EVENT: dict[str, Any] = {"name": "retry", "time_unix_nano": 1, "attributes": {"why": "é"}}
LINK: dict[str, Any] = {"trace_id": "tr-0", "span_id": "1", "attributes": {}}
Log = Callable[[Store, int], object]


def spans(*made: dict[str, Any]) -> Log:
    return lambda store, n: store.log(n, [span_json(n) | span for span in made])


def stored(**changes: Any) -> Log:
    """A trace whose stored span is changed without MLflow; keys with the value None are removed."""

    def log(store: Store, n: int) -> None:
        store.log(n)
        span = {key: value for key, value in (span_json(n) | changes).items() if value is not None}
        store.store_spans(n, json.dumps(span, ensure_ascii=False))

    return log


def stored_text(content: str) -> Log:
    def log(store: Store, n: int) -> None:
        store.log(n)
        store.store_spans(n, content)

    return log


def typed(span_type: object, **attributes: object) -> Log:
    return stored(attributes={"mlflow.spanType": span_type, **attributes})


def info(**changes: Any) -> Log:
    return lambda store, n: store.log(n, **changes)


def columns(**values: object) -> Log:
    """A trace whose columns of `trace_info` are changed without MLflow."""

    def log(store: Store, n: int) -> None:
        store.log(n)
        for column, value in values.items():
            store.sql(f"UPDATE trace_info SET {column} = ? WHERE request_id = ?", (value, trace_id(n)))  # noqa: S608

    return log


def pair(table: str, key: str, value: str | None) -> Log:
    def log(store: Store, n: int) -> None:
        store.log(n)
        statement = f"INSERT INTO {table} (request_id, key, value) VALUES (?, ?, ?)"  # noqa: S608 - the test's own
        store.sql(statement, (trace_id(n), key, value))

    return log


def without_location(store: Store, n: int) -> None:
    store.log(n)
    store.sql("DELETE FROM trace_tags WHERE key = 'mlflow.trace.spansLocation' AND request_id = ?", (trace_id(n),))


def located(place: str) -> Log:
    def log(store: Store, n: int) -> None:
        store.log(n)
        store.sql(
            "UPDATE trace_tags SET value = ? WHERE key = 'mlflow.trace.spansLocation' AND request_id = ?",
            (place, trace_id(n)),
        )

    return log


def in_a_file(text: str) -> Log:
    def log(store: Store, n: int) -> None:
        store.log(n, [])
        folder = Path(store.client.get_trace_info(trace_id(n)).tags["mlflow.artifactLocation"].removeprefix("file://"))
        folder.mkdir(parents=True)
        (folder / "traces.json").write_text(text)

    return log


def overridden(store: Store, n: int) -> None:
    store.log(n, assessments=[Feedback(name="good", value=True, source=HUMAN)])
    [first] = store.client.get_trace_info(trace_id(n)).assessments
    store.client.log_assessment(trace_id(n), Feedback(name="good", value=False, overrides=first.assessment_id))


def moved_away(store: Store, n: int) -> None:
    store.log(n)
    store.store_spans(n, "", json.dumps(span_json(n, 2)))


def in_progress(*made: dict[str, Any]) -> Log:
    size = {"mlflow.trace.sizeStats": json.dumps({"num_spans": 5})}
    return lambda store, n: store.log(
        n, [span_json(n) | span for span in made], state=TraceState.IN_PROGRESS, duration_ms=None, trace_metadata=size
    )


ODD: dict[str, Log] = {
    "in progress without spans": in_progress(),
    "in progress with a span": in_progress({}),
    "spans in a file": in_a_file(json.dumps({"spans": [span_json(1, name="from a file")]})),
    "an empty file": in_a_file(""),
    "a file without spans": in_a_file('{"spans": []}'),
    "in a missing file": in_a_file("{oops"),
    "no place for spans": without_location,
    "spans said to be artifacts": located("ARTIFACT_REPO"),
    "spans said to be archived": located("ARCHIVE_REPO"),
    "spans moved away": moved_away,
    "feedback": info(
        assessments=[
            Feedback(name="good", value=True, source=HUMAN, rationale="brief", metadata={"k": "ü"}, span_id="1" * 16),
            Feedback(name="score", value={"b": 2.5, "a": "x"}),
            Feedback(name="none", value=None),
            Feedback(name="judge", error=AssessmentError("TIMEOUT", "too slow", "line 1\nline 2")),
        ]
    ),
    "expectations": info(
        assessments=[Expectation(name="facts", value=["x", "ÿ"], source=HUMAN), Expectation(name="n", value=42)]
    ),
    "an issue": info(assessments=[IssueReference(issue_id="issue-1", issue_name="slow", source=HUMAN)]),
    "overridden feedback": overridden,
    "tokens and cost": info(trace_metadata=USAGE),
    "tags": info(tags={"mlflow.traceName": "my agent", "ünï": "cødé \N{FIRE}", "nul": "a\0b", "": "", "n": "5"}),
    "an empty tag": pair("trace_tags", "empty", None),
    "a long tag": pair("trace_tags", "k" * 251, "x" * 5000),
    "long metadata": pair("trace_request_metadata", "k" * 251, "x" * 300),
    "empty metadata": pair("trace_request_metadata", "empty", None),
    "metadata that is kept in a column too": pair("trace_request_metadata", "mlflow.trace.session", "old"),
    "a name in the tags alone": pair("trace_tags", "mlflow.traceName", "old"),
    "empty texts": columns(client_request_id="", request_preview="", response_preview="", trace_name="", session_id=""),
    "previews": columns(client_request_id="c", request_preview='{"ö": "\N{FIRE}"}', response_preview="\x01"),
    "no duration": columns(execution_time_ms=None),
    "a negative duration": columns(execution_time_ms=-1),
    "a duration that MLflow refuses": columns(execution_time_ms=2**62),
    "a status of nothing": columns(status="STATE_UNSPECIFIED"),
    "a part of a second": info(started=START + timedelta(milliseconds=120)),
    "an end at once": info(duration_ms=0),
    "events and links": spans({"events": [EVENT], "links": [LINK]}),
    "spans that start together": spans(*({"span_id": span_json(1, index)["span_id"]} for index in (3, 1, 2))),
    "raw characters": stored(name="Où \N{FIRE} \x7f", attributes={"mlflow.spanInputs": '"\N{FIRE}"'}),
    "no type": typed(None),
    "no known type": typed('"my type"'),
    "an unknown type": typed('"UNKNOWN"'),
    "an unquoted type": typed("UNKNOWN"),
    "a number for a type": typed(5),
    "a list for a type": typed(["LLM"]),
    "a type among other attributes": typed('"UNKNOWN"', **{"openinference.span.kind": '"LLM"'}),
    "a type among other attributes alone": stored(attributes={"openinference.span.kind": "LLM"}),
    "no attributes": stored(attributes=None),
    "a list of attributes": stored(attributes=[1]),
    "no events, links or status": stored(events=None, links=None, status=None),
    "more keys": stored(more={"z": 1, "a": [1.5e300, -0.0, 10**30]}),
    "no spaces": lambda store, n: (store.log(n), store.store_spans(n, json.dumps(span_json(n), separators=(",", ":")))),
    "a key twice": stored_text('{"attributes": {}, "name": "a", "name": "b"}'),
    "numbers spelled otherwise": stored_text('{"attributes": {}, "x": [1E5, 1.50, -0, 1e400], "name": "\\/\\u0041"}'),
    "spaces around": lambda store, n: (store.log(n), store.store_spans(n, f" {json.dumps(span_json(n))}\n")),
    "two spans for one": stored_text('{"attributes": {}}, {}'),
}


@pytest.fixture(scope="module")
def odd_store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every odd trace, and the hostile traces of the archive's tests."""
    folder = tmp_path_factory.mktemp("odd")
    shutil.copytree(empty_store, folder / "store")
    store = Store.open(folder / "store" / "mlflow.db")
    log_hostile(store)
    for number, log in enumerate(ODD.values(), 1001):
        log(store, number)
    store.sql("UPDATE assessments SET valid = 0 WHERE name = 'n'")
    return store


@pytest.fixture(scope="module", params=DATABASES)
def odd(
    request: pytest.FixtureRequest, odd_store: Store, tmp_path_factory: pytest.TempPathFactory, spark: SparkResource
) -> tuple[Archived, Archived]:
    folder = tmp_path_factory.mktemp("lakes")
    if request.param == "sqlite":
        return both(odd_store.uri, HOUR, folder, spark)
    # PostgreSQL stores only text in UTF-8.
    not_utf8 = "instr(CAST({0} AS BLOB), x'EDA080')"
    odd_store.sql(f"UPDATE spans SET content = '{{oops' WHERE {not_utf8.format('content')}")  # noqa: S608
    odd_store.sql(f"UPDATE trace_tags SET value = 'mended' WHERE {not_utf8.format('value')}")  # noqa: S608
    # PostgreSQL returns spans that start together in any order, to MLflow too.
    odd_store.sql("UPDATE spans SET start_time_unix_nano = start_time_unix_nano + rowid")
    return both(copied_to(request.getfixturevalue("postgres"), "odd", odd_store.uri), HOUR, folder, spark)


def test_odd_traces_have_the_same_rows_as_mlflows(odd: tuple[Archived, Archived]) -> None:
    found, given = odd
    assert found.rows.keys() == given.rows.keys()
    assert [key for key, row in found.rows.items() if row != given.rows[key]] == []
    assert len(found.rows) > len(ODD)


def test_odd_traces_are_quarantined_like_mlflows(odd: tuple[Archived, Archived]) -> None:
    found, given = odd
    assert found.quarantined.keys() == given.quarantined.keys()
    # If the database cannot decode a text, its error quotes the query, and ours differs from MLflow's.
    others = {key: row for key, row in found.quarantined.items() if "UTF-8" not in row["reason"]}
    assert others == {key: row for key, row in given.quarantined.items() if "UTF-8" not in row["reason"]}
    assert all(key in row["raw"] for key, row in found.quarantined.items())


# ---- pages ----


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_sql, "PAGE", 3)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("offsets_ms", [[0] * 7, [*range(7)], [0, 1, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1, 1], [1, 1, 1]])
def test_pages_return_each_trace_once_in_order(store: Store, offsets_ms: list[int]) -> None:
    for number, offset in enumerate(offsets_ms, 1):
        store.log(number, started=START + timedelta(milliseconds=offset))
    assert ids_of(read(store.uri)) == [trace_id(number) for number in range(1, len(offsets_ms) + 1)]


def test_the_window_is_half_open(store: Store) -> None:
    step = timedelta(milliseconds=1)
    for number, started in enumerate([HOUR.start - step, HOUR.start, HOUR.end - step, HOUR.end], 1):
        store.log(number, started=started)
    assert ids_of(read(store.uri)) == [trace_id(2), trace_id(3)]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("database", DATABASES)
def test_no_trace_is_skipped_or_returned_twice_if_others_change_between_pages(
    request: pytest.FixtureRequest, store: Store, database: str
) -> None:
    for number in range(2, 9):
        store.log(number)
    uri, client = store.uri, store.client
    if database == "postgres":
        uri = copied_to(request.getfixturevalue("postgres"), "between pages", uri)
        client = TracingClient(uri)
    with opened(uri) as open_database:
        batches = read_traces(open_database, [store.experiment_id], HOUR, uri)
        seen = ids_of(next(batches))
        client.delete_traces(store.experiment_id, trace_ids=[trace_id(2), trace_id(3)])
        Store(store.file, client, store.experiment_id).log(1)
        client.delete_traces(store.experiment_id, trace_ids=[trace_id(8)])
        seen += [key for batch in batches for key in ids_of(batch)]
    assert seen == [trace_id(number) for number in range(2, 8)]


def test_pages_are_also_limited_by_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_sql, "PAGE_BYTES", 20_000)
    for number, characters in enumerate([4_500, 4_500, 4_500, 50_000, 10], 1):
        store.log(number, [span_json(number, attributes={"mlflow.spanInputs": "é" * characters})])  # of two bytes each
    with opened(store.uri) as database:
        pages = [len(batch) for batch in read_traces(database, [store.experiment_id], HOUR, store.uri)]
    assert pages == [2, 1, 1, 1]


def test_a_trace_is_read_in_one_snapshot(store: Store, postgres: PostgresServer) -> None:
    store.log(1, tags={"team": "blue"})
    uri = copied_to(postgres, "one moment", store.uri)
    client = TracingClient(uri)

    def delete(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        if "FROM spans" in statement and "sum(" not in statement:  # the info has been read, the spans have not
            client.delete_traces(store.experiment_id, trace_ids=[trace_id(1)])

    with opened(uri) as database:
        event.listen(database, "before_cursor_execute", delete)
        [[trace]] = read_traces(database, [store.experiment_id], HOUR, uri)
    assert isinstance(trace, FlatTrace)
    assert (trace.row["tags"]["team"], len(trace.row["spans"])) == ("blue", 1)
    assert read(uri) == []


# ---- read-only access ----


@pytest.mark.parametrize("database", DATABASES)
def test_nothing_can_be_written(request: pytest.FixtureRequest, store: Store, database: str) -> None:
    store.log(1)
    uri = store.uri if database == "sqlite" else request.getfixturevalue("postgres").address("empty")
    with opened(uri) as read_only, read_only.connect() as connection, pytest.raises(DBAPIError, match=r"read-?only"):
        connection.execute(sa.delete(models.SqlTraceTag))


def test_reading_does_not_change_the_file(store: Store) -> None:
    store.log(1)
    _let_go(store.uri)
    before = hashlib.sha256(store.file.read_bytes()).hexdigest(), sorted(store.file.parent.iterdir())
    assert len(read(store.uri)) == 1
    assert (hashlib.sha256(store.file.read_bytes()).hexdigest(), sorted(store.file.parent.iterdir())) == before


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_store_can_be_written_meanwhile(store: Store, mode: str) -> None:
    for number in range(1, 8):
        store.log(number)
    _let_go(store.uri)
    with closing(sqlite3.connect(store.file, timeout=1)) as writer, opened(store.uri) as database:
        assert writer.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
        batches = read_traces(database, [store.experiment_id], HOUR, store.uri)
        seen = ids_of(next(batches))
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO trace_tags (request_id, key, value) VALUES (?, 'late', 'yes')", (trace_id(7),))
        seen += ids_of(next(batches))  # while the writer has not committed
        writer.commit()
        rest = [trace for batch in batches for trace in batch]
    assert seen + ids_of(rest) == [trace_id(number) for number in range(1, 8)]
    assert isinstance(rest[-1], FlatTrace)
    assert rest[-1].row["tags"]["late"] == "yes"


def test_a_name_with_odd_characters_is_read(store: Store, tmp_path: Path) -> None:
    store.log(1)
    _let_go(store.uri)
    file = tmp_path / "my store #1 é.db"
    shutil.copy(store.file, file)
    assert len(read(f"sqlite:///{file}")) == 1


# ---- unreadable databases ----


def failure(uri: str) -> str:
    with pytest.raises(TrackingError) as raised, opened(uri):
        pass
    message = str(raised.value)
    assert "\n" not in message
    assert PASSWORD not in message
    return message


def test_a_missing_file_is_an_error_and_not_created(tmp_path: Path) -> None:
    message = failure(f"sqlite:///{tmp_path / 'none.db'}")
    assert "none.db" in message
    assert "[archive] location" in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_mlflows_database_is_an_error(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    assert "schema revision None" in failure(f"sqlite:///{tmp_path / 'other.db'}")
    (tmp_path / "text.db").write_text("no database at all, but text" * 100)
    assert "file is not a database" in failure(f"sqlite:///{tmp_path / 'text.db'}")


def test_an_unreachable_server_is_an_error() -> None:
    message = failure(f"postgresql://ada:{PASSWORD}@127.0.0.1:{free_port()}/mlflow")
    assert "refused" in message


def test_a_wrong_password_is_an_error_that_does_not_show_it(postgres: PostgresServer) -> None:
    wrong = f"wrong-{PASSWORD}"
    assert "password authentication failed" in failure(postgres.address("empty", wrong))


def test_an_address_without_a_driver_uses_the_installed_one(postgres: PostgresServer) -> None:
    assert read(postgres.address("empty").replace("+psycopg2", "")) == []


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:5000", "mysql://ada:open-sesame@host/db", "databricks", "data/mlflow"]
)
def test_a_database_other_than_sqlite_and_postgresql_is_refused(uri: str) -> None:
    assert "[archive] location" in failure(uri)


def test_a_database_of_an_older_mlflow_is_refused(store: Store) -> None:
    [current] = sa.create_engine(store.uri).connect().execute(sa.text("SELECT version_num FROM alembic_version")).one()
    store.sql("UPDATE alembic_version SET version_num = '867495a8f9d4'")
    message = failure(store.uri)
    assert "867495a8f9d4" in message
    assert current in message
    assert 'source = "mlflow"' in message


def test_a_database_of_a_newer_mlflow_is_refused(store: Store) -> None:
    store.sql("UPDATE alembic_version SET version_num = 'f00'")
    message = failure(store.uri)
    assert "schema revision f00" in message
    assert "upgrade mlflow" in message
    assert "\n" not in message


@pytest.mark.parametrize("for_good", [True, False])
def test_a_database_that_fails_while_reading_raises_and_quarantines_no_trace(
    store: Store, postgres: PostgresServer, lake: LakeResource, for_good: bool
) -> None:
    store.log(1)
    name = f"lost {for_good}"
    uri = copied_to(postgres, name, store.uri)

    def lose(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        if "FROM spans" in statement and "sum(" not in statement:
            postgres.disconnect(name, for_good)

    with pytest.raises(TrackingError, match=r"closed the connection|terminating connection"), opened(uri) as database:
        event.listen(database, "before_cursor_execute", lose)
        archive(lake, HOUR, read_traces(database, [store.experiment_id], HOUR, uri), {})
    assert rows(lake, QUARANTINED_TRACES) == {}


# ---- experiments and settings ----


def test_experiments_are_read_from_the_database(store: Store) -> None:
    client = MlflowClient(store.uri)
    other, gone = client.create_experiment("other"), client.create_experiment("gone")
    client.delete_experiment(gone)
    with opened(store.uri) as database:
        everything = experiment_names(database, [])
        assert everything == {e.experiment_id: e.name for e in client.search_experiments()}
        assert experiment_names(database, ["other", "gone"]) == {other: "other", gone: "gone"}
        with pytest.raises(TrackingError, match=r"no experiment 'nobody' at .*; it has 'Default', 'made', 'other'"):
            experiment_names(database, ["made", "nobody"])


def test_only_the_named_experiments_are_archived(store: Store, lake: LakeResource) -> None:
    other = MlflowClient(store.uri).create_experiment("other")
    store.log(1)
    Store(store.file, store.client, other).log(2)
    archive_window(SQL, TrackingResource(tracking_uri=store.uri, experiments=["other"]), lake, HOUR)
    assert {key: row["experiment_name"] for key, row in rows(lake).items()} == {trace_id(2): "other"}


def test_no_server_is_needed(store: Store, lake: LakeResource) -> None:
    store.log(1)
    source = ArchiveSettings(source="mlflow-sql", location=store.uri)
    tracking = TrackingResource(tracking_uri=f"http://127.0.0.1:{free_port()}")
    assert archive_window(source, tracking, lake, HOUR).written == 1


def test_archiving_again_makes_no_commit(store: Store, lake: LakeResource) -> None:
    store.log(1)
    tracking = TrackingResource(tracking_uri=store.uri)
    first = archive_window(SQL, tracking, lake, HOUR)
    again = archive_window(
        ArchiveSettings(), tracking, lake, HOUR
    )  # the other source of the same traces makes none either
    assert (first.written, again.written) == (1, 0)


def test_an_unreadable_trace_has_its_start(store: Store) -> None:
    # A unique id: stores are copies of one store, and share its folder of artifacts.
    store.log(4711, [], started=START + timedelta(milliseconds=1_001))
    [trace] = read(store.uri)
    assert isinstance(trace, UnreadableTrace)
    assert trace.started == START + timedelta(milliseconds=1_001)
