"""The hourly counts of each source. The expected counts are of the traces that MLflow's client reads."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import AssessmentSource, Feedback, Span, Trace, TraceState
from sqlalchemy import event, pool

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources import mlflow_sql
from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.sources.mlflow_database import opened
from monitoring_pipeline.sources.opening import open_source
from monitoring_pipeline.windows import EPOCH, Window, floor_hour, from_milliseconds
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.sources.archived_tables import (
    ARCHIVED_TRACE,
    OTEL_ANNOTATION,
    OTEL_SPAN_V1,
    archived_rows,
    as_v1,
    span_rows,
    write,
    write_otel_v1,
)
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store, span_json, trace_id, traces_of

API, SQL = ArchiveSettings(), ArchiveSettings(source="mlflow-sql")
DAY = Window(START - timedelta(hours=12), START + timedelta(hours=12))
AN_HOUR = timedelta(hours=1)
SOURCES = ("mlflow", "mlflow-sql", "delta", "otel")

Counts = dict[datetime, HourCounts]


def source_counts(
    settings: ArchiveSettings, tracking: TrackingResource, spark: SparkResource, window: Window
) -> Counts:
    with open_source(settings, tracking, spark) as source:
        return source.counts(window)


class Sources:
    """The four sources of the traces of a store; `append` writes the sources that are tables."""

    def __init__(self, store: Store, folder: Path, spark: SparkResource):
        self.store, self.folder, self.spark = store, folder, spark
        self.tracking = TrackingResource(tracking_uri=store.uri, experiments=["made"])

    def settings(self, name: str) -> ArchiveSettings:
        if name in ("mlflow", "mlflow-sql"):
            return API if name == "mlflow" else SQL
        return ArchiveSettings.model_validate({"source": name, "location": str(self.folder / name)})

    def append(self, name: str, *numbers: int) -> None:
        """Append the current traces to the tables, as Databricks does; the other sources already have them."""
        traces = [self.store.client.get_trace(trace_id(number)) for number in numbers]
        if name == "delta":
            write(self.folder / "delta", archived_rows(traces), ARCHIVED_TRACE)
        if name == "otel":
            write_otel_v1(str(self.folder / "otel"), traces)

    def counts(self, name: str, window: Window = DAY) -> Counts:
        return source_counts(self.settings(name), self.tracking, self.spark, window)


@pytest.fixture
def sources(store: Store, tmp_path: Path, spark: SparkResource) -> Sources:
    return Sources(store, tmp_path, spark)


def without_marks(counts: Counts) -> Counts:
    return {hour: HourCounts(of.traces, of.in_progress, of.assessments) for hour, of in counts.items()}


def counted(traces: list[Trace]) -> Counts:
    """The expected counts."""
    by_hour = defaultdict[datetime, list[Trace]](list)
    for trace in traces:
        by_hour[floor_hour(from_milliseconds(trace.info.request_time))].append(trace)
    return {
        hour: HourCounts(
            len(those),
            sum(trace.info.state == TraceState.IN_PROGRESS for trace in those),
            sum(len(trace.info.assessments) for trace in those),
        )
        for hour, those in by_hour.items()
    }


@pytest.fixture(scope="module")
def recorded(recorded_store: str) -> TrackingResource:
    return TrackingResource(tracking_uri=recorded_store, experiments=["airline"])


@pytest.fixture(scope="module")
def recorded_traces(recorded: TrackingResource) -> list[Trace]:
    return traces_of(recorded, RECORDED_WINDOW)


@pytest.mark.parametrize("source", [API, SQL], ids=lambda source: source.source)
def test_two_days_are_counted_correctly(
    source: ArchiveSettings, recorded: TrackingResource, recorded_traces: list[Trace], spark: SparkResource
) -> None:
    counts = source_counts(source, recorded, spark, RECORDED_WINDOW)
    assert len(counts) > 24
    assert without_marks(counts) == counted(recorded_traces)


def test_a_server_returns_the_same_counts_as_its_database(
    recorded_server: str, recorded: TrackingResource, spark: SparkResource
) -> None:
    over_http = TrackingResource(tracking_uri=recorded_server, experiments=["airline"])
    expected = source_counts(API, recorded, spark, RECORDED_WINDOW)
    assert source_counts(API, over_http, spark, RECORDED_WINDOW) == expected


@pytest.mark.parametrize("name", SOURCES)
def test_an_hour_has_the_same_counts_in_any_window(name: str, sources: Sources) -> None:
    store, edge = sources.store, START + AN_HOUR
    store.log(1, started=START)  # the first moment of an hour
    store.log(2, started=edge - timedelta(milliseconds=1), assessments=[Feedback(name="thumbs_up", value=True)])
    store.log(3, started=edge)
    unfinished = [span_json(4, parent=9, started=edge + 2 * AN_HOUR)]  # a root span is written when it ends
    store.log(4, unfinished, state=TraceState.IN_PROGRESS, started=edge + 2 * AN_HOUR, duration_ms=None)
    sources.append(name, 1, 2, 3, 4)

    whole = sources.counts(name)

    assert without_marks(whole) == {
        START: HourCounts(2, 0, 1),
        edge: HourCounts(1, 0, 0),
        edge + 2 * AN_HOUR: HourCounts(1, 1, 0),
    }
    alone = [sources.counts(name, Window(hour, hour + AN_HOUR)) for hour in DAY.hours()]
    assert {hour: of_hour for counts in alone for hour, of_hour in counts.items()} == whole


def judge_twice(store: Store) -> None:
    store.client.log_assessment(trace_id(1), Feedback(name="good", value=0.5, source=AssessmentSource("HUMAN", "b")))


def override(store: Store) -> None:
    [given] = store.client.get_trace(trace_id(1)).info.assessments
    store.client.log_assessment(
        trace_id(1), Feedback(name="good", value=False, overrides=given.assessment_id, source=given.source)
    )


def edit(store: Store) -> None:
    [given] = store.client.get_trace(trace_id(1)).info.assessments
    assert given.assessment_id is not None
    store.client.update_assessment(trace_id(1), given.assessment_id, Feedback(name="good", value=False))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("change", [judge_twice, override, edit], ids=lambda change: change.__name__)
def test_a_change_of_feedback_changes_the_counts_of_its_hour(
    name: str, change: Callable[[Store], None], sources: Sources
) -> None:
    sources.store.log(1, assessments=[Feedback(name="good", value=True)])
    sources.append(name, 1)
    before = sources.counts(name)
    change(sources.store)
    sources.append(name, 1)
    after = sources.counts(name)
    assert before.keys() == after.keys() == {START}
    assert before != after
    assert (before[START].traces, after[START].traces) == (1, 1)
    assert sources.counts(name) == after  # until the next change


@pytest.mark.parametrize("name", ["mlflow", "mlflow-sql"])
def test_a_trace_that_ends_is_no_longer_in_progress(name: str, sources: Sources) -> None:
    sources.store.log(1, [span_json(1, 2, parent=1)], state=TraceState.IN_PROGRESS, duration_ms=None)
    before = sources.counts(name)
    sources.store.log(1)
    assert without_marks(before) == {START: HourCounts(1, 1, 0)}
    assert without_marks(sources.counts(name)) == {START: HourCounts(1, 0, 0)}


def test_a_trace_archived_twice_counts_as_ended(sources: Sources) -> None:
    sources.store.log(1, [span_json(1, 2, parent=1)], state=TraceState.IN_PROGRESS, duration_ms=None)
    sources.append("delta", 1)
    assert without_marks(sources.counts("delta")) == {START: HourCounts(1, 1, 0)}
    sources.store.log(1, assessments=[Feedback(name="good", value=True)])
    sources.append("delta", 1)
    assert without_marks(sources.counts("delta")) == {START: HourCounts(1, 0, 1)}


def test_a_deleted_annotation_no_longer_counts(sources: Sources) -> None:
    sources.store.log(1, assessments=[Feedback(name="good", value=True)])
    sources.append("otel", 1)
    assert without_marks(sources.counts("otel")) == {START: HourCounts(1, 0, 1)}
    later = START + timedelta(days=2)
    [annotation] = [
        row
        for row in sources.spark.session.read.format("delta")
        .load(str(sources.folder / "otel_otel_annotations"))
        .toArrow()
        .to_pylist()
        if row["annotation_type"] == "FEEDBACK"
    ]
    write(
        sources.folder / "otel_otel_annotations",
        [annotation | {"deleted_at": later, "updated_at": datetime.now(later.tzinfo)}],
        OTEL_ANNOTATION,
    )
    assert without_marks(sources.counts("otel")) == {START: HourCounts(1, 0, 0)}


def test_a_late_span_changes_the_counts(sources: Sources) -> None:
    sources.store.log(1)
    sources.append("otel", 1)
    before = sources.counts("otel")
    sources.store.log(1, [span_json(1), span_json(1, 2, parent=1)])
    late = span_rows([sources.store.client.get_trace(trace_id(1))])[-1]
    write(sources.folder / "otel_otel_spans", [as_v1(late)], OTEL_SPAN_V1)
    after = sources.counts("otel")
    assert without_marks(after) == without_marks(before)
    assert after != before


@pytest.mark.parametrize(("name", "lasts_ms"), [("mlflow-sql", 1), ("mlflow-sql", 50_000), ("mlflow", 50_000)], ids=str)
def test_a_late_span_in_a_store_changes_the_mark(name: str, lasts_ms: int, sources: Sources) -> None:
    sources.store.log(1)
    before = sources.counts(name)
    late = span_json(1, 2, parent=1)
    late["end_time_unix_nano"] = late["start_time_unix_nano"] + lasts_ms * 1_000_000
    sources.store.client.store.log_spans(sources.store.experiment_id, [Span.from_dict(late)])
    after = sources.counts(name)
    assert without_marks(after) == without_marks(before)
    assert after[START].differ_from(before[START])
    assert sources.counts(name) == after  # until the next change


@pytest.mark.parametrize(
    ("recorded", "differ"),
    [
        (HourCounts(2, 0, 1, "mean 1; OK 5 ms"), False),
        (HourCounts(2, 0, 1, "mean 1"), False),  # of an earlier version, with fewer parts
        (HourCounts(2, 0, 1), False),
        (HourCounts(2, 0, 1, "mean 2"), True),
        (HourCounts(2, 0, 1, "mean 1; OK 6 ms"), True),
        (HourCounts(2, 0, 1, "mean 1; OK 5"), True),
        (HourCounts(1, 0, 1, "mean 1; OK 5 ms"), True),
        (HourCounts(2, 1, 1, "mean 1"), True),
    ],
)
def test_counts_differ_from_recorded_ones(recorded: HourCounts, differ: bool) -> None:
    assert HourCounts(2, 0, 1, "mean 1; OK 5 ms").differ_from(recorded) is differ


@pytest.mark.parametrize("name", ["mlflow", "mlflow-sql"])
def test_an_empty_store_has_no_counts(name: str, sources: Sources) -> None:
    assert sources.counts(name) == {}


@pytest.mark.parametrize("source", [API, SQL], ids=lambda source: source.source)
def test_a_store_without_an_experiment_has_no_counts(
    source: ArchiveSettings, store: Store, spark: SparkResource
) -> None:
    store.sql("UPDATE experiments SET lifecycle_stage = 'deleted'")
    assert source_counts(source, TrackingResource(tracking_uri=store.uri), spark, DAY) == {}


def old_traces(store: Store, number: int, step: timedelta) -> None:
    """`number` traces before START, `step` apart, written into the database without MLflow."""
    start_ms, step_ms = (START - EPOCH) // timedelta(milliseconds=1), step // timedelta(milliseconds=1)
    store.sql(
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, execution_time_ms, status)"
        " VALUES (?, ?, ?, 5, 'OK')",
        *((f"tr-old-{index}", store.experiment_id, start_ms - index * step_ms) for index in range(1, number + 1)),
    )


@pytest.mark.parametrize("name", ["mlflow", "mlflow-sql"])
def test_more_hours_than_mlflow_returns_at_once_are_counted(name: str, sources: Sources) -> None:
    old_traces(sources.store, 2600, AN_HOUR / 2)
    counts = sources.counts(name, Window(START - timedelta(days=60), HOUR.end))
    assert len(counts) == 1300
    assert without_marks(counts) == {START - index * AN_HOUR: HourCounts(2) for index in range(1, 1301)}


def test_a_response_that_may_be_truncated_is_an_error(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    old_traces(sources.store, 30, AN_HOUR)
    monkeypatch.setattr("monitoring_pipeline.sources.mlflow.METRIC_POINTS", 10)
    with pytest.raises(TrackingError, match="returned 10 points"):
        sources.counts("mlflow", Window(START - timedelta(days=2), HOUR.end))


def plan(store: Store, query: Any) -> list[str]:
    """SQLite's plan of the query, a line for each table."""
    with opened(store.uri) as database, database.begin() as connection:
        compiled = query.compile(database, compile_kwargs={"literal_binds": True})
        return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]


def test_the_database_finds_the_window_by_its_index(store: Store) -> None:
    old_traces(store, 20_000, timedelta(minutes=1))
    store.sql("ANALYZE")
    for query in mlflow_sql._counting_queries([store.experiment_id], HOUR):
        searched = [line for line in plan(store, query) if "trace_info" in line]
        assert len(searched) == 1
        assert re.search(r"INDEX \w*timestamp_ms.*timestamp_ms>\? AND timestamp_ms<\?", searched[0]), searched


@pytest.mark.parametrize("name", ["mlflow", "mlflow-sql"])
def test_the_work_does_not_grow_with_the_history(name: str, sources: Sources) -> None:
    """The work is measured in steps of SQLite's virtual machine, which do not depend on the computer."""
    sources.store.log(1, assessments=[Feedback(name="good", value=True)])
    few = steps_of(lambda: sources.counts(name, HOUR))
    old_traces(sources.store, 20_000, timedelta(minutes=1))
    many = steps_of(lambda: sources.counts(name, HOUR))
    assert sources.counts(name, HOUR)[START].traces == 1
    assert many <= few + 20


def steps_of(count: Callable[[], Any]) -> int:
    """The number of steps, in hundreds, that SQLite takes for the queries of `count`."""
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 1
        return 0

    def watch(connection: sqlite3.Connection, *_: Any) -> None:
        getattr(connection, "driver_connection", connection).set_progress_handler(step, 100)

    event.listen(pool.Pool, "checkout", watch)
    try:
        count()
    finally:
        event.remove(pool.Pool, "checkout", watch)
    return taken


@pytest.mark.parametrize("name", ["delta", "otel"])
def test_a_missing_table_is_named(name: str, sources: Sources) -> None:
    with pytest.raises(TrackingError, match=re.escape(str(sources.folder / name))):
        sources.counts(name)
