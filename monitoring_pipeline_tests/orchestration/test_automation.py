"""Requests of the automation conditions, over real runs: assets do nothing, but everything else about them is real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import freeze_time

from monitoring_pipeline.orchestration.automation import automated, automation_sensor
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import (
    ArchiveSettings,
    AutomationSettings,
    ScorerSettings,
    ScoringSettings,
    Settings,
)
from monitoring_pipeline_tests.made_project import LATENCY, QUALITY

NOON = datetime(2026, 1, 10, 12, 5, tzinfo=UTC)
LATE, LATER, NOW = "2026-01-05-03:00", "2026-01-05-07:00", "2026-01-10-12:00"
LATE_DAY = "2026-01-05"
ARCHIVE = "archived_traces"
PERFORMANCE = {"trace_performance", "trace_errors", "hourly_performance", "span_profile", "model_usage"}
SCORERS = {"assessments/response_quality", "assessments/stage_latency"}
LEDGER = {"scorer_coverage", "hourly_quality"}
OF_A_DAY = {"scorer_agreement", "daily_report"}


@dataclass
class World:
    """A pipeline of stand-ins whose clock the test moves; requests run at once, one run per hour."""

    instance: dg.DagsterInstance
    settings: Settings
    now: datetime = NOON
    broken: set[str] = field(default_factory=set)
    during: dict[str, Callable[[], None]] = field(default_factory=dict)
    requested: Counter[tuple[str, str]] = field(default_factory=Counter)
    cursor: Any = None

    def __post_init__(self) -> None:
        self.definitions = self._definitions()

    def _definitions(self) -> dg.Definitions:
        real = build_definitions(self.settings).assets or []
        stand_ins = [self._stand_in(asset) for asset in real if isinstance(asset, dg.AssetsDefinition)]
        scorers = load_scorers(self.settings.scorers)
        return dg.Definitions(assets=automated(stand_ins, scorers, self.settings.automation))

    def _stand_in(self, real: dg.AssetsDefinition) -> dg.AssetsDefinition:
        name = real.key.to_user_string()

        @dg.asset(
            key=real.key,
            deps=list(real.asset_deps[real.key]),
            partitions_def=real.partitions_def,
            code_version=real.get_asset_spec().code_version,
            backfill_policy=real.backfill_policy,
        )
        def stand_in() -> None:
            self.during.pop(name, lambda: None)()
            if name in self.broken:
                raise RuntimeError("no disk")

        return stand_in

    def change(self, **settings: Any) -> None:
        """Reload the code with other settings."""
        self.settings = self.settings.model_copy(update=settings)
        self.definitions = self._definitions()

    def run(self, names: set[str], partition: str) -> bool:
        """Run the named assets for the partition."""
        with freeze_time(self.now):
            result = self.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
                instance=self.instance,
                asset_selection=[dg.AssetKey.from_user_string(name) for name in names],
                partition_key=partition,
                run_config=QUIET,
                raise_on_error=False,
            )
        return result.success

    def tick(self) -> dict[str, set[str]]:
        """The names of assets that a tick requests, by partition. The clock advances by half a minute."""
        self.now += timedelta(seconds=30)
        with freeze_time(self.now):
            result = dg.evaluate_automation_conditions(
                self.definitions, self.instance, cursor=self.cursor, evaluation_time=self.now
            )
        self.cursor = result.cursor
        requests: dict[str, set[str]] = {}
        for key in self.definitions.resolve_asset_graph().get_all_asset_keys():
            for partition in result.get_requested_partitions(key):
                requests.setdefault(str(partition), set()).add(key.to_user_string())
        self.requested.update((name, partition) for partition, names in requests.items() for name in names)
        return requests

    def settle(self) -> list[dict[str, set[str]]]:
        """Tick and run the requests until a tick requests nothing."""
        waves = []
        while requests := self.tick():
            waves.append(requests)
            assert len(waves) < 10, f"requests do not end: {waves}"
            for partition, names in requests.items():
                self.run(names, partition)
        return waves

    def archive(self, *partitions: str) -> None:
        """Run what the sensor requests."""
        for partition in partitions:
            assert self.run({ARCHIVE}, partition)

    def wait_until(self, hour: int, minute: int) -> None:
        """Advance the clock to that time of day; the next tick is after it."""
        moment = self.now.replace(hour=hour, minute=minute, second=0)
        self.now = moment if moment > self.now else moment + timedelta(days=1)

    def times(self, partition: str) -> dict[str, int]:
        """How often each asset was requested for that partition."""
        return {name: count for (name, of), count in self.requested.items() if of == partition}


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    """Creates a world after its first tick, which has no history."""
    with dg.DagsterInstance.ephemeral() as instance:

        def world(*scorers: ScorerSettings, **settings: Any) -> World:
            archive = ArchiveSettings(start=datetime(2026, 1, 4, tzinfo=UTC))
            chosen = [*scorers] or [QUALITY, LATENCY]
            made = World(instance, Settings(scorers=chosen, archive=archive, **settings))
            assert made.tick() == {}
            return made

        yield world


def test_a_late_hour_requests_everything_up_to_the_days_report_once(make: Callable[..., World]) -> None:
    world = make(scoring=ScoringSettings(write_back=True))
    world.archive(LATE)
    assert world.settle() == [{LATE: PERFORMANCE | SCORERS}, {LATE: LEDGER | {"results_in_mlflow"}}]
    world.wait_until(12, 29)
    assert world.tick() == {}
    world.wait_until(12, 30)
    assert world.settle() == [{LATE_DAY: OF_A_DAY}]
    world.wait_until(13, 30)
    assert world.tick() == {}
    assert set(world.requested.values()) == {1}


def test_late_hours_of_one_day_lead_to_one_report(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.archive(LATE)
    world.settle()
    world.archive(LATER)
    world.settle()
    world.wait_until(12, 30)
    world.settle()
    assert world.times(LATE_DAY) == dict.fromkeys(OF_A_DAY, 1)
    for hour in (LATE, LATER):
        assert world.times(hour) == dict.fromkeys(PERFORMANCE | LEDGER | {"assessments/response_quality"}, 1)


def test_a_report_waits_while_an_hour_of_its_day_is_running(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.archive(LATE)
    world.settle()
    requests: list[dict[str, set[str]]] = []
    world.wait_until(12, 30)
    world.during["hourly_quality"] = lambda: requests.append(world.tick())
    assert world.run({"hourly_quality"}, LATER)
    assert requests == [{}]
    assert world.tick() == {}  # the half hour has to come after the latest change
    world.wait_until(13, 30)
    assert world.tick() == {LATE_DAY: OF_A_DAY}


def test_a_late_hour_of_a_past_week_requests_the_weeks_report_after_the_days(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.archive("2026-01-04-03:00")  # a Sunday
    world.settle()
    world.wait_until(12, 30)
    assert world.settle() == [{"2026-01-04": OF_A_DAY}]
    world.wait_until(12, 45)
    assert world.settle() == [{"2025-12-29": {"weekly_report"}}]
    for hour in (13, 14):
        world.wait_until(hour, 30)
        assert world.tick() == {}
        world.wait_until(hour, 45)
        assert world.tick() == {}


def test_a_week_is_reported_when_it_ends(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.now = datetime(2026, 1, 11, 23, 40, tzinfo=UTC)
    world.archive("2026-01-11-23:00")
    world.settle()
    world.wait_until(23, 45)
    assert world.tick() == {}
    world.wait_until(0, 30)
    assert world.settle() == [{"2026-01-11": OF_A_DAY}]
    world.wait_until(0, 45)
    assert world.settle() == [{"2026-01-05": {"weekly_report"}}]


def test_the_current_hour_runs_each_time_and_the_report_when_the_day_ends(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    for _ in range(2):
        world.archive(NOW)
        world.settle()
    assert set(world.times(NOW).values()) == {2}
    world.wait_until(23, 30)
    assert world.tick() == {}
    world.wait_until(0, 0)
    assert world.tick() == {}
    world.wait_until(0, 30)
    assert world.settle() == [{"2026-01-10": OF_A_DAY}]


def test_the_ledger_waits_for_a_running_scorer(make: Callable[..., World]) -> None:
    world = make()
    world.archive(LATE)
    first = world.tick()[LATE]
    requests: list[dict[str, set[str]]] = []
    world.run(first - {"assessments/stage_latency"}, LATE)
    world.during["assessments/stage_latency"] = lambda: requests.append(world.tick())
    world.run({"assessments/stage_latency"}, LATE)
    assert requests == [{}]
    assert world.settle() == [{LATE: LEDGER}]


def test_a_change_while_downstream_assets_run_is_not_lost(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.archive(LATE)
    first = world.tick()[LATE]

    requests: list[dict[str, set[str]]] = []

    def meanwhile() -> None:
        world.archive(LATE)
        requests.append(world.tick())

    world.during["trace_performance"] = meanwhile
    assert world.run(first, LATE)
    assert "trace_performance" not in requests[0][LATE]  # the others ran before the change, and are requested
    assert "trace_performance" in world.tick()[LATE]


def test_a_failed_run_is_requested_only_once_more(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.broken = {"trace_performance"}
    world.archive(LATE)
    waves = world.settle()
    assert [wave[LATE] & PERFORMANCE for wave in waves] == [
        PERFORMANCE,
        {"trace_performance", "hourly_performance"},
    ]
    world.wait_until(13, 0)
    assert LATE not in world.tick()

    world.archive(LATE)  # a new change, a new attempt
    world.settle()
    assert world.times(LATE)["trace_performance"] == 3
    world.broken = set()
    world.archive(LATE)
    world.settle()
    assert world.times(LATE)["trace_performance"] == 4


def test_a_scorer_that_fails_stops_neither_ledger_nor_quality(make: Callable[..., World]) -> None:
    world = make()
    world.broken = {"assessments/stage_latency"}
    world.archive(LATE)
    assert world.settle() == [
        {LATE: PERFORMANCE | SCORERS},
        {LATE: {"assessments/stage_latency"}},
        {LATE: LEDGER},
    ]


def test_failed_quality_is_requested_again_with_its_ledger(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.broken = {"hourly_quality"}
    world.archive(LATE)
    assert [wave[LATE] for wave in world.settle()][1:] == [LEDGER, LEDGER]


def test_quality_does_not_run_alone_after_a_failed_ledger(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.broken = {"scorer_coverage"}
    world.archive(LATE)
    assert [wave[LATE] for wave in world.settle()][1:] == [LEDGER, LEDGER]


def test_a_failed_manual_run_is_not_repeated(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.broken = {"trace_performance"}
    assert not world.run({"trace_performance"}, LATE)
    assert world.tick() == {}


def test_after_a_run_of_the_whole_chain_only_the_report_is_requested(make: Callable[..., World]) -> None:
    world = make()
    assert world.run({ARCHIVE} | PERFORMANCE | SCORERS | LEDGER, LATE)
    assert world.settle() == []
    world.wait_until(12, 30)
    assert world.settle() == [{LATE_DAY: OF_A_DAY}]


@pytest.mark.parametrize("state", ["stopped", "registered"])
def test_an_inactive_scorer_is_not_requested(make: Callable[..., World], state: str) -> None:
    world = make(QUALITY, LATENCY.model_copy(update={"state": state}))
    world.archive(LATE)
    assert world.settle() == [{LATE: PERFORMANCE | {"assessments/response_quality"}}, {LATE: LEDGER}]


STRICT = QUALITY.model_copy(update={"params": {"min_characters": 500}})


def test_a_changed_digest_alone_requests_nothing(make: Callable[..., World]) -> None:
    world = make(QUALITY)
    world.archive(NOW)
    world.settle()
    world.change(scorers=[STRICT])
    assert world.settle() == []


def test_with_rescore_changed_a_changed_digest_scores_the_look_back_again(
    make: Callable[..., World],
) -> None:
    world = make(QUALITY, LATENCY, automation=AutomationSettings(rescore_changed=True, rescore_look_back_hours=6))
    recent = "2026-01-10-08:00"
    world.archive(LATE, recent)
    world.settle()
    world.change(scorers=[STRICT, LATENCY])
    assert world.settle() == [{recent: {"assessments/response_quality"}}, {recent: LEDGER}]
    assert world.settle() == []


def test_everything_but_the_archive_is_automated() -> None:
    settings = Settings(scorers=[QUALITY, LATENCY], scoring=ScoringSettings(write_back=True))
    graph = build_definitions(settings).resolve_asset_graph()
    without = {key for key in graph.get_all_asset_keys() if graph.get(key).automation_condition is None}
    assert without == {dg.AssetKey(ARCHIVE)}


@pytest.mark.parametrize("enabled", [False, True])
def test_one_setting_starts_sensor_and_schedules_and_adds_freshness_policies(enabled: bool) -> None:
    settings = Settings(scorers=[QUALITY], automation=AutomationSettings(enabled=enabled))
    repository = build_definitions(settings).get_repository_def()
    [sensor] = [sensor for sensor in repository.sensor_defs if sensor.name == "automation"]
    assert (sensor.default_status == dg.DefaultSensorStatus.RUNNING) == enabled
    started = dg.DefaultScheduleStatus.RUNNING
    running = {schedule.name for schedule in repository.schedule_defs if schedule.default_status == started}
    assert running >= {"daily_report", "latest_hour"} if enabled else not running
    graph = repository.asset_graph
    watched = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy}
    assert watched == ({"hourly_performance", "hourly_quality", "daily_report"} if enabled else set())


def test_no_sensor_of_dagsters_own_evaluates_the_conditions_beside_ours() -> None:
    sensors = build_definitions(Settings(scorers=[QUALITY])).get_repository_def().sensor_defs
    names = [sensor.name for sensor in sensors if isinstance(sensor, dg.AutomationConditionSensorDefinition)]
    assert names == [automation_sensor(AutomationSettings()).name] == ["automation"]
