"""Schedules: the days and weeks whose reports they request, and the check of the latest hour."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import freeze_time

from monitoring_pipeline.keys import DAILY_REPORT, DATASETS, LATEST_HOUR, UPKEEP, WEEKLY_REPORT
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.orchestration.schedules import days_without_report, schedules, weeks_without_report
from monitoring_pipeline.settings import ArchiveSettings, DatasetSettings, Settings
from monitoring_pipeline_tests.made_project import MadeProject

ONE_OCLOCK = datetime(2026, 1, 10, 1, 0, tzinfo=UTC)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def days_due(instance: dg.DagsterInstance, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> list[str]:
    """The days without a report at one o'clock."""
    return days_without_report(instance, start, ONE_OCLOCK)


def report(instance: dg.DagsterInstance, day: str, at: datetime) -> None:
    with freeze_time(at):
        instance.report_runless_asset_event(dg.AssetMaterialization("daily_report", partition=day))


def test_every_day_of_the_last_week_without_a_report_is_due(instance: dg.DagsterInstance) -> None:
    assert days_due(instance) == [f"2026-01-{day:02}" for day in range(3, 10)]


def test_no_day_before_the_archive_is_due(instance: dg.DagsterInstance) -> None:
    assert days_due(instance, datetime(2026, 1, 8, 15, tzinfo=UTC)) == ["2026-01-08", "2026-01-09"]


def test_a_report_written_before_its_day_ended_is_due_again(instance: dg.DagsterInstance) -> None:
    for day in range(3, 9):
        report(instance, f"2026-01-{day:02}", datetime(2026, 1, day + 1, 0, 31, tzinfo=UTC))
    report(instance, "2026-01-09", datetime(2026, 1, 9, 23, 59, tzinfo=UTC))
    assert days_due(instance) == ["2026-01-09"]
    report(instance, "2026-01-09", datetime(2026, 1, 10, 0, 31, tzinfo=UTC))
    assert days_due(instance) == []


def test_the_schedule_requests_a_run_for_each_due_day(dagster_home: Path) -> None:
    settings = Settings(archive=ArchiveSettings(start=datetime(2020, 1, 1, tzinfo=UTC)))
    repository = build_definitions(settings).get_repository_def()
    schedule = repository.get_schedule_def("daily_report")
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        at = datetime(2020, 1, 3, 1, 0, tzinfo=UTC)
        with dg.build_schedule_context(instance, scheduled_execution_time=at, repository_def=repository) as context:
            requests = schedule.evaluate_tick(context).run_requests or []
    assert [(request.partition_key, request.run_key) for request in requests] == [
        ("2020-01-01", "2020-01-01 at 2020-01-03T01:00Z"),
        ("2020-01-02", "2020-01-02 at 2020-01-03T01:00Z"),
    ]


# Saturday the 10th of January: the last full week starts on the 29th of December.
WEEKS = ["2025-12-08", "2025-12-15", "2025-12-22", "2025-12-29"]
LONG_AGO = datetime(2025, 6, 1, tzinfo=UTC)


def test_every_week_of_the_last_four_without_a_report_is_due(instance: dg.DagsterInstance) -> None:
    assert weeks_without_report(instance, LONG_AGO, ONE_OCLOCK) == WEEKS
    monday = datetime(2026, 1, 12, 1, 15, tzinfo=UTC)
    assert weeks_without_report(instance, LONG_AGO, monday) == [*WEEKS[1:], "2026-01-05"]


def test_no_week_before_the_archive_or_no_longer_kept_is_due(instance: dg.DagsterInstance) -> None:
    start = datetime(2025, 12, 24, 15, tzinfo=UTC)
    assert weeks_without_report(instance, start, ONE_OCLOCK) == WEEKS[2:]
    assert weeks_without_report(instance, datetime(2025, 12, 29, tzinfo=UTC), ONE_OCLOCK) == WEEKS[3:]
    assert weeks_without_report(instance, LONG_AGO, ONE_OCLOCK, keep_archive_days=20) == WEEKS[2:]
    assert weeks_without_report(instance, LONG_AGO, ONE_OCLOCK, keep_archive_days=5) == []


def test_a_report_written_before_its_week_ended_is_due_again(instance: dg.DagsterInstance) -> None:
    for week in WEEKS:
        with freeze_time(datetime(2026, 1, 4, 23, 59, tzinfo=UTC)):
            instance.report_runless_asset_event(dg.AssetMaterialization("weekly_report", partition=week))
    assert weeks_without_report(instance, LONG_AGO, ONE_OCLOCK) == WEEKS[3:]
    with freeze_time(datetime(2026, 1, 5, 0, 31, tzinfo=UTC)):
        instance.report_runless_asset_event(dg.AssetMaterialization("weekly_report", partition=WEEKS[3]))
    assert weeks_without_report(instance, LONG_AGO, ONE_OCLOCK) == []


def test_the_weekly_schedule_requests_a_run_for_each_due_week(dagster_home: Path) -> None:
    settings = Settings(archive=ArchiveSettings(start=datetime(2020, 1, 1, tzinfo=UTC)))
    repository = build_definitions(settings).get_repository_def()
    schedule = repository.get_schedule_def("weekly_report")
    assert schedule.job_name == WEEKLY_REPORT
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        at = datetime(2020, 1, 13, 1, 15, tzinfo=UTC)
        with dg.build_schedule_context(instance, scheduled_execution_time=at, repository_def=repository) as context:
            requests = schedule.evaluate_tick(context).run_requests or []
    assert [(request.partition_key, request.run_key) for request in requests] == [
        ("2019-12-30", "week of 2019-12-30 at 2020-01-13T01:15Z"),
        ("2020-01-06", "week of 2020-01-06 at 2020-01-13T01:15Z"),
    ]


def test_datasets_have_a_schedule_if_configured() -> None:
    usual = {DAILY_REPORT, WEEKLY_REPORT, LATEST_HOUR, UPKEEP}
    assert {schedule.job_name for schedule in schedules(Settings())} == usual
    configured = Settings(datasets=[DatasetSettings(name="finished", kind="traces")])
    assert {schedule.job_name for schedule in schedules(configured)} == {*usual, DATASETS}


def test_the_latest_hour_is_checked_without_a_run_of_its_asset(made: MadeProject, instance: dg.DagsterInstance) -> None:
    job = build_definitions(made.settings).resolve_job_def(LATEST_HOUR)
    assert job.execute_in_process(instance=instance, run_config=QUIET).success
    key = dg.AssetCheckKey(dg.AssetKey("hourly_performance"), "latest_hour_is_there")
    [record] = instance.event_log_storage.get_asset_check_execution_history(key, limit=5)
    assert record.event is not None
    evaluation = record.event.asset_check_evaluation
    assert evaluation is not None
    assert evaluation.passed
    assert evaluation.metadata["computed"].value == 0
    assert not instance.fetch_materializations(key.asset_key, limit=1).records
