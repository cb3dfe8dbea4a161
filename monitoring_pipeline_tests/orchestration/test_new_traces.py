"""The sensor that follows the source: the hours it requests and skips, and that it stops when nothing differs.

Each test uses a real store and a real lake, and runs requests as the daemon would, in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.events.log import EventLogEntry
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Feedback, TraceState

from monitoring_pipeline.archive import window as sources
from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.keys import ARCHIVE, MONITORING, NEW_TRACES, NO_PREFIX, RANGE_END, RANGE_START
from monitoring_pipeline.orchestration import new_traces, requested_runs
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.requested_runs import given_up
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import (
    ArchiveSettings,
    AutomationSettings,
    LakeSettings,
    MlflowSettings,
    SensorSettings,
    Settings,
    UpkeepSettings,
)
from monitoring_pipeline.sources.mlflow import MlflowSource
from monitoring_pipeline.tables import AGENT_TRACES, ARCHIVED_HOURS
from monitoring_pipeline.windows import HOUR, Window, floor_hour
from monitoring_pipeline_tests.made_project import LATENCY
from monitoring_pipeline_tests.servers import free_port
from monitoring_pipeline_tests.sources.archived_tables import ARCHIVED_TRACE, archived_rows, write, write_otel_v1
from monitoring_pipeline_tests.sources.stores import Store, span_json, trace_id

# Half past, so that no hour ends within a test.
NOW = floor_hour(datetime.now(UTC)) + timedelta(minutes=30)
CURRENT = floor_hour(NOW)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
QUIET_TICK = "the archive has what the source has"


def key(hour: datetime) -> str:
    return f"{hour:%Y-%m-%d-%H:%M}"


@dataclass
class Follower:
    """A store, a lake, and a Dagster instance whose sensor is ticked by hand."""

    store: Store
    settings: Settings
    instance: dg.DagsterInstance
    monkeypatch: pytest.MonkeyPatch
    cursor: str | None = None
    launched: list[dg.RunRequest] = field(default_factory=list)
    built: tuple[Settings, dg.Definitions] | None = None

    def at(self, now: datetime) -> None:
        """Set the clock of the sensor and of the archive."""

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return now.astimezone(tz)

        self.monkeypatch.setattr(new_traces, "datetime", Clock)
        self.monkeypatch.setattr(sources, "datetime", Clock)

    def having(self, archive: dict[str, Any] | None = None, **sensor: Any) -> Follower:
        """A copy with other settings."""
        self.settings = self.settings.model_copy(
            update={
                "archive": ArchiveSettings.model_validate(self.settings.archive.model_dump() | (archive or {})),
                "sensor": SensorSettings.model_validate(self.settings.sensor.model_dump() | sensor),
            }
        )
        return self

    @property
    def lake(self) -> LakeResource:
        return build_resources(self.settings)["lake"]

    @property
    def definitions(self) -> dg.Definitions:
        if self.built is None or self.built[0] is not self.settings:
            self.built = self.settings, build_definitions(self.settings)
        return self.built[1]

    def log(self, number: int, started: datetime, **options: Any) -> None:
        self.store.log(number, started=started, **options)

    def tick(self) -> Any:
        """One evaluation, as by the daemon: it keeps the cursor, and launches no run key twice."""
        sensor = self.definitions.resolve_sensor_def(NEW_TRACES)
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources=build_resources(self.settings),
            sensor_name=NEW_TRACES,
            definitions=self.definitions,
        ) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        known = {request.run_key for request in self.launched}
        assert not known.intersection(request.run_key for request in data.run_requests or []), (
            "Dagster would not launch it"
        )
        return data

    def requested(self) -> list[tuple[str, str]]:
        """The ranges that a tick requests, without running them."""
        return [(request.tags[RANGE_START], request.tags[RANGE_END]) for request in self.tick().run_requests]

    def run(self, request: dg.RunRequest) -> bool:
        self.launched.append(request)
        result = self.definitions.resolve_job_def(ARCHIVE).execute_in_process(
            instance=self.instance, tags=request.tags, run_config=QUIET, raise_on_error=False
        )
        return result.success

    def follow(self, ticks: int = 1) -> list[tuple[str, str]]:
        """Tick that many times and run the requests; returns the ranges that were run."""
        ran: list[tuple[str, str]] = []
        for _ in range(ticks):
            for request in self.tick().run_requests:
                assert self.run(request)
                ran.append((request.tags[RANGE_START], request.tags[RANGE_END]))
        return ran

    def archived(self) -> set[str]:
        window = Window(NOW - 20 * DAY, NOW + 10 * DAY)
        return set(self.lake.read_columns(AGENT_TRACES, window, "trace_id")["trace_id"].to_pylist())

    def is_quiet(self) -> bool:
        data = self.tick()
        return not data.run_requests and data.skip_message == QUIET_TICK


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def follower(
    made_folder: Path, tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Follower:
    """An empty store, read from its database and followed for the last four days."""
    shutil.copytree(made_folder, tmp_path / "store", ignore=shutil.ignore_patterns("lake"))
    store = Store.open(tmp_path / "store" / "mlflow.db")
    settings = Settings(
        mlflow=MlflowSettings(tracking_uri=store.uri, experiments=["made"]),
        lake=LakeSettings(location=str(tmp_path / "lake")),
        archive=ArchiveSettings.model_validate({"start": (CURRENT - 4 * DAY).isoformat()}),
        scorers=[LATENCY],
    )
    made = Follower(store, settings, instance, monkeypatch)
    made.at(NOW)
    return made


def test_an_empty_store_requests_nothing(follower: Follower) -> None:
    assert follower.is_quiet()
    assert follower.lake.read_columns(ARCHIVED_HOURS, Window(NOW - DAY, NOW), "hour").num_rows == 0


def finish(store: Store) -> None:
    store.log(2, started=CURRENT - 20 * HOUR)


def add_feedback(store: Store) -> None:
    store.client.log_assessment(trace_id(1), Feedback(name="thumbs_up", value=True))


def add_late(store: Store) -> None:
    store.log(3, started=CURRENT - 19.5 * HOUR)


def delete(store: Store) -> None:
    store.client.delete_traces(store.experiment_id, trace_ids=[trace_id(1)])


@pytest.mark.parametrize("change", [add_late, add_feedback, finish, delete], ids=lambda change: change.__name__)
def test_only_a_changed_hour_is_requested_again_once(change: Callable[[Store], None], follower: Follower) -> None:
    old = CURRENT - 20 * HOUR
    follower.log(1, old)
    follower.log(2, old, spans=[span_json(2, 2, parent=1, started=old)], state=TraceState.IN_PROGRESS, duration_ms=None)
    follower.log(4, old - HOUR)
    assert follower.follow() == [(key(old - HOUR), key(old))]
    assert follower.is_quiet()
    before = follower.archived()

    change(follower.store)

    assert follower.follow() == [(key(old), key(old))]
    assert follower.is_quiet()
    assert follower.archived() == before | ({trace_id(3)} if change is add_late else set())  # the archive never shrinks


@pytest.mark.parametrize("source", ["mlflow", "mlflow-sql", "delta", "otel"])
def test_every_source_is_followed(source: str, follower: Follower, tmp_path: Path) -> None:
    location = str(tmp_path / source) if source in ("delta", "otel") else None
    follower.having({"source": source, "location": location})

    def log(number: int, started: datetime) -> None:
        follower.log(number, started)
        trace = follower.store.client.get_trace(trace_id(number))
        if source == "delta":
            write(tmp_path / source, archived_rows([trace]), ARCHIVED_TRACE)
        if source == "otel":
            write_otel_v1(str(tmp_path / source), [trace])

    log(1, CURRENT - 3 * HOUR)
    assert follower.follow() == [(key(CURRENT - 3 * HOUR),) * 2]
    assert follower.is_quiet()
    log(2, CURRENT - 2.5 * HOUR)
    assert follower.follow() == [(key(CURRENT - 3 * HOUR),) * 2]
    assert follower.is_quiet()
    assert len(follower.archived()) == 2


def test_a_trace_that_arrives_while_its_hour_is_read_makes_the_hour_due_again(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sources._merge

    def read_late(*arguments: Any) -> Any:
        monkeypatch.setattr(sources, "_merge", read)
        counts = read(*arguments)
        follower.log(2, CURRENT - HOUR)
        return counts

    follower.log(1, CURRENT - HOUR)
    monkeypatch.setattr(sources, "_merge", read_late)
    assert follower.follow(2) == [(key(CURRENT - HOUR),) * 2] * 2
    assert follower.archived() == {trace_id(1), trace_id(2)}
    assert follower.is_quiet()


def test_an_unreadable_source_is_a_skip_with_its_reason(follower: Follower) -> None:
    follower.having(look_back_hours=24)
    assert follower.is_quiet()
    cursor = follower.cursor
    assert cursor is not None
    address = f"http://127.0.0.1:{free_port()}"
    mlflow = MlflowSettings(tracking_uri=address)
    follower.settings = follower.settings.model_copy(update={"mlflow": mlflow})
    data = follower.tick()
    assert data.skip_message.startswith("source and archive cannot be compared: no MLflow server answers at " + address)
    assert data.cursor == cursor


def test_a_source_that_fails_midway_does_not_move_the_cursor(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower.having(look_back_hours=24)
    follower.log(1, CURRENT - HOUR)
    count, answers = MlflowSource.counts, iter([True, False])  # of the latest day, and of one before

    def fails_second(*arguments: Any) -> Any:
        if next(answers):
            return count(*arguments)
        raise TrackingError("it went away")

    monkeypatch.setattr(MlflowSource, "counts", fails_second)
    data = follower.tick()
    assert (data.run_requests, data.cursor) == ([], None)
    assert data.skip_message == "source and archive cannot be compared: it went away"


def fail_reading(follower: Follower) -> None:
    def fails(*_: Any) -> None:
        raise TrackingError("the disk is full")

    follower.monkeypatch.setattr(sources, "_merge", fails)


def test_a_failed_run_is_requested_again_and_then_given_up(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    hour = CURRENT - 2 * HOUR
    follower.log(1, hour)
    with monkeypatch.context() as broken:
        follower.monkeypatch = broken
        fail_reading(follower)
        attempts = []
        for _ in range(3):
            assert given_up(follower.instance, NO_PREFIX) == []
            [request] = follower.tick().run_requests
            attempts.append(request.tags["monitoring/attempt"])
            assert not follower.run(request)
        assert attempts == ["1/3", "2/3", "3/3"]
        data = follower.tick()
        assert (data.run_requests, data.skip_message) == ([], f"given up for today: {key(hour)}")
        [named] = given_up(follower.instance, NO_PREFIX)
    assert (named.hour, named.attempts) == (hour, 3)
    assert "the disk is full" in named.reason
    assert follower.instance.get_run_by_id(named.run_id) is not None

    follower.log(2, hour)  # the source has changed
    assert follower.follow() == [(key(hour), key(hour))]
    assert given_up(follower.instance, NO_PREFIX) == []
    assert follower.is_quiet()


def test_hours_given_up_are_requested_the_next_day(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    follower.log(1, CURRENT - 2 * HOUR)
    follower.having(max_attempts=1)
    with monkeypatch.context() as broken:
        follower.monkeypatch = broken
        fail_reading(follower)
        [request] = follower.tick().run_requests
        assert not follower.run(request)
        assert follower.tick().run_requests == []
    follower.monkeypatch = monkeypatch
    tomorrow = datetime.now(UTC) + DAY  # the day may have changed since NOW
    follower.at(tomorrow)
    assert given_up(follower.instance, NO_PREFIX, tomorrow) == []
    assert follower.follow() == [(key(CURRENT - 2 * HOUR),) * 2]


def test_a_failing_hour_does_not_delay_others(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = [CURRENT - number * HOUR for number in (4, 3, 2)]
    for number, hour in enumerate(hours):
        follower.log(number, hour)
    with monkeypatch.context() as broken:
        follower.monkeypatch = broken
        fail_reading(follower)
        [request] = follower.tick().run_requests
        assert not follower.run(request)
    assert follower.requested() == [(key(hour), key(hour)) for hour in reversed(hours)]


def test_a_missing_trace_fails_the_check_and_its_hour_stays_due(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = CURRENT - 2 * HOUR
    follower.log(1, hour)
    follower.log(2, hour)
    upsert = LakeResource.upsert

    def loses_one(lake: LakeResource, table: Any, rows: Any, *window: Any) -> int:
        return upsert(lake, table, rows.slice(1) if table is AGENT_TRACES else rows, *window)

    with monkeypatch.context() as losing:
        losing.setattr(LakeResource, "upsert", loses_one)
        [request] = follower.tick().run_requests
        result = follower.definitions.resolve_job_def(ARCHIVE).execute_in_process(
            instance=follower.instance, tags=request.tags, run_config=QUIET, raise_on_error=False
        )
        follower.launched.append(request)
    [check] = [found for found in result.get_asset_check_evaluations() if found.check_name == "archive_complete"]
    assert (check.passed, check.metadata["lacking"].value) == (False, 1)
    assert check.metadata["hours"].value == f"{hour:%Y-%m-%d %H:%M}: 1 lacking"
    assert not result.success
    assert follower.follow() == [(key(hour), key(hour))]
    assert follower.is_quiet()


def test_traces_deleted_while_being_read_are_not_missing(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    follower.log(1, CURRENT - HOUR)
    read = sources._merge

    def deletes_first(*arguments: Any) -> Any:
        delete(follower.store)
        return read(*arguments)

    monkeypatch.setattr(sources, "_merge", deletes_first)
    [request] = follower.tick().run_requests
    assert follower.run(request)


def covering(follower: Follower, job: str, status: DagsterRunStatus, **options: Any) -> dg.DagsterRun:
    """A run of the job over the three hours before the current one, created now by the sensor's clock."""
    follower.at(datetime.now(UTC))
    tags = {RANGE_START: key(CURRENT - 3 * HOUR), RANGE_END: key(CURRENT - HOUR)}
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__"), job)
    return follower.instance.create_run_for_job(
        follower.definitions.resolve_job_def(job), status=status, tags=tags, remote_job_origin=origin, **options
    )


@pytest.mark.parametrize("status", [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTED])
@pytest.mark.parametrize("job", [ARCHIVE, MONITORING])
def test_hours_of_a_run_in_progress_are_not_requested(job: str, status: DagsterRunStatus, follower: Follower) -> None:
    follower.log(1, CURRENT - 2 * HOUR)
    follower.log(2, CURRENT - 5 * HOUR)
    run = covering(follower, job, status)
    data = follower.tick()
    assert [request.tags[RANGE_START] for request in data.run_requests] == [key(CURRENT - 5 * HOUR)]
    follower.run(data.run_requests[0])
    assert follower.tick().skip_message == f"being archived: {key(CURRENT - 2 * HOUR)}"
    follower.instance.report_run_failed(run)
    assert follower.requested() == [(key(CURRENT - 2 * HOUR),) * 2]


def test_runs_that_do_not_archive_delay_nothing(follower: Follower) -> None:
    follower.log(1, CURRENT - 2 * HOUR)
    others = frozenset({dg.AssetKey("trace_performance")})
    covering(follower, MONITORING, DagsterRunStatus.STARTED, asset_selection=others)
    assert follower.requested() == [(key(CURRENT - 2 * HOUR),) * 2]


def test_a_run_killed_with_its_machine_blocks_its_hours_only_for_a_while(follower: Follower) -> None:
    follower.log(1, CURRENT - 2 * HOUR)
    covering(follower, ARCHIVE, DagsterRunStatus.STARTED)
    assert follower.requested() == []
    follower.at(datetime.now(UTC) + requested_runs.SILENCE + MINUTE)
    assert follower.requested() == [(key(CURRENT - 2 * HOUR),) * 2]


def test_a_run_that_logs_is_not_considered_dead(follower: Follower) -> None:
    follower.log(1, CURRENT - 2 * HOUR)
    run = covering(follower, ARCHIVE, DagsterRunStatus.STARTED)
    later = datetime.now(UTC) + requested_runs.SILENCE + MINUTE
    follower.instance.handle_new_event(
        EventLogEntry(
            error_info=None,
            level=20,
            user_message="2000 traces read",
            run_id=run.run_id,
            timestamp=(later - MINUTE).timestamp(),
            step_key="archived_traces",
            job_name=ARCHIVE,
            dagster_event=None,
        )
    )
    follower.at(later)
    assert follower.requested() == []


def test_the_current_hour_is_refreshed_every_few_minutes(follower: Follower) -> None:
    follower.log(1, CURRENT + MINUTE)
    assert follower.follow() == [(key(CURRENT), key(CURRENT))]
    follower.log(2, CURRENT + 2 * MINUTE)
    follower.at(NOW + 4 * MINUTE)
    assert follower.tick().skip_message == f"archived a short while ago: {key(CURRENT)}"
    follower.at(NOW + 5 * MINUTE)
    assert follower.follow() == [(key(CURRENT), key(CURRENT))]
    follower.log(3, CURRENT + 3 * MINUTE)
    follower.at(NOW + 31 * MINUTE)  # once it is over, at once
    assert follower.follow() == [(key(CURRENT), key(CURRENT))]
    assert len(follower.archived()) == 3


def test_the_sweep_over_older_days_finds_a_changed_one_and_starts_over(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_traces, "SWEEP_SECONDS", 0.0)  # one day in each tick
    follower.having({"start": (CURRENT - 10 * DAY).isoformat()}, look_back_hours=24)
    old = CURRENT - 8 * DAY
    follower.log(1, old)
    ran, cursors = [], []
    for _ in range(22):
        ran.append(follower.follow())
        cursors.append(follower.cursor)
    assert [ranges for ranges in ran if ranges] == [[(key(old), key(old))]]
    assert len(set(cursors)) in (10, 11)  # days; the first and the last may be partial
    assert cursors[: len(set(cursors))] == cursors[len(set(cursors)) : 2 * len(set(cursors))]
    follower.log(2, old)
    assert [ranges for _ in range(11) if (ranges := follower.follow())] == [[(key(old), key(old))]]


def test_a_tick_sweeps_older_days_until_one_differs(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_traces, "SWEEP_SECONDS", 60.0)
    follower.having({"start": (CURRENT - 10 * DAY).isoformat()}, look_back_hours=24)
    old = CURRENT - 8 * DAY
    follower.log(1, old)
    follower.log(2, old - DAY)
    assert follower.follow() == [(key(old), key(old))]
    assert follower.cursor == f"{old - DAY:%Y-%m-%d}"
    assert follower.follow() == [(key(old - DAY), key(old - DAY))]
    follower.log(3, old)
    assert follower.follow() == [(key(old), key(old))]  # it has gone round


def test_a_trace_that_the_source_could_not_send_for_a_while_is_archived(follower: Follower) -> None:
    hour = CURRENT - HOUR
    follower.log(1, hour)
    follower.store.store_spans(1, "{broken")
    follower.follow()
    assert follower.archived() == set()
    follower.store.store_spans(1, json.dumps(span_json(1, started=hour)))
    assert follower.is_quiet()
    follower.at(NOW + 10 * MINUTE)
    assert follower.follow() == [(key(hour), key(hour))]
    assert follower.archived() == {trace_id(1)}
    follower.at(NOW + DAY)
    assert follower.is_quiet()


def test_hours_that_the_archive_no_longer_keeps_are_not_requested(follower: Follower) -> None:
    follower.having({"start": (CURRENT - 10 * DAY).isoformat()}, look_back_hours=200)
    follower.settings = follower.settings.model_copy(update={"upkeep": UpkeepSettings(keep_archive_days=3)})
    follower.log(1, CURRENT - 5 * DAY)
    follower.log(2, CURRENT - 2 * DAY)
    assert follower.follow(2) == [(key(CURRENT - 2 * DAY),) * 2]
    assert follower.is_quiet()


@pytest.mark.parametrize("cursor", ["nonsense", "1999-01-01", ""])
def test_an_invalid_cursor_starts_over(cursor: str, follower: Follower) -> None:
    follower.having(look_back_hours=24)
    assert follower.is_quiet()
    first = follower.cursor
    follower.cursor = cursor
    assert follower.is_quiet()
    assert follower.cursor == first


def test_after_a_week_offline_everything_is_archived_automatically(follower: Follower) -> None:
    follower.having({"start": (CURRENT - 4 * DAY).isoformat()})
    follower.log(0, CURRENT - HOUR)
    follower.follow(2)
    hours = [CURRENT + number * HOUR for number in range(0, 7 * 24, 25)]
    for number, hour in enumerate(hours, 1):
        follower.log(number, hour)
    follower.at(NOW + 7 * DAY)
    ran = follower.follow(10)
    assert len(ran) == len(set(ran)) == len(hours)
    assert follower.archived() == {trace_id(number) for number in range(len(hours) + 1)}
    assert follower.is_quiet()


def test_a_deleted_lake_is_archived_again_automatically(follower: Follower) -> None:
    hours = [CURRENT - number * HOUR for number in (2, 1)]
    for number, hour in enumerate(hours):
        follower.log(number, hour)
    for _ in range(5):  # more often than max_attempts: no run has failed
        assert follower.follow() == [(key(hours[0]), key(hours[1]))]
        assert follower.is_quiet()
        shutil.rmtree(follower.settings.lake.location)


def test_a_comparison_that_takes_too_long_requests_what_it_found(
    follower: Follower, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    follower.having(look_back_hours=48)
    follower.log(1, CURRENT)
    follower.log(2, CURRENT - 47 * HOUR)
    monkeypatch.setattr(new_traces, "BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(new_traces, "time", SimpleNamespace(monotonic=iter([0.0, 0.0, 1.0]).__next__))
    data = follower.tick()
    assert [request.tags[RANGE_END] for request in data.run_requests] == [key(CURRENT)]
    assert data.cursor is None
    assert "lower [sensor] look_back_hours" in capfd.readouterr().err


def test_a_tick_requests_a_limited_number_of_runs_and_later_ticks_the_rest(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_traces, "RUNS_PER_TICK", 3)
    hours = [CURRENT - number * HOUR for number in (1, 3, 5, 7)]
    for number, hour in enumerate(hours):
        follower.log(number, hour)
    assert follower.follow() == [(key(hour), key(hour)) for hour in hours[:3]]
    assert follower.follow() == [(key(hours[3]), key(hours[3]))]


def test_the_sensor_is_on_if_automation_is_enabled(follower: Follower) -> None:
    def status() -> dg.DefaultSensorStatus:
        return follower.definitions.resolve_sensor_def(NEW_TRACES).default_status

    assert status() == dg.DefaultSensorStatus.STOPPED
    follower.having(interval_seconds=120)
    follower.settings = follower.settings.model_copy(update={"automation": AutomationSettings(enabled=True)})
    assert status() == dg.DefaultSensorStatus.RUNNING
    sensor = follower.definitions.resolve_sensor_def(NEW_TRACES)
    assert (sensor.minimum_interval_seconds, sensor.job_name) == (120, ARCHIVE)


FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.dictionaries(st.integers(0, 100), st.integers(0, 2), max_size=60))
def test_requests_cover_each_hour_once(failures: dict[int, int]) -> None:
    wanted = {FIRST + number * HOUR: failed for number, failed in failures.items()}
    requests = list(new_traces._requests(wanted))
    hours = [hour for request in requests for hour in request.hours]
    assert sorted(hours) == sorted(wanted)
    for request in requests:
        assert request.hours == list(Window(request.hours[0], request.hours[-1] + HOUR).hours())
        assert len(request.hours) <= new_traces.HOURS_PER_RUN
        assert {wanted[hour] for hour in request.hours} == {request.attempt - 1}
        assert request.attempt == 1 or len(request.hours) == 1
    assert [request.hours[0] for request in requests] == sorted((r.hours[0] for r in requests), reverse=True)
