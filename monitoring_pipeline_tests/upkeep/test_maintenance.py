"""Upkeep: expired rows are removed and do not come back, unless a run still reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from pydantic import ValidationError

from monitoring_pipeline.keys import MONITORING, NO_PREFIX, RANGE_START
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.settings import Settings, UpkeepSettings
from monitoring_pipeline.settings.hours import whole_hours
from monitoring_pipeline.settings.upkeep import oldest_kept
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    DELETED_TRACES,
    HOURLY_PERFORMANCE,
    SCORER_COVERAGE,
    TABLES,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
)
from monitoring_pipeline.upkeep.maintenance import Upkept, keep_up
from monitoring_pipeline.upkeep.retention import expire
from monitoring_pipeline_tests.cli.calling import calling
from monitoring_pipeline_tests.made_project import FIRST, MadeProject

NOON = datetime(2026, 1, 4, 12, tzinfo=UTC)  # the project's traces are from the 1st


def test_whole_days_before_today_are_kept() -> None:
    assert oldest_kept(3, NOON) == datetime(2026, 1, 1, tzinfo=UTC)
    assert oldest_kept(None, NOON) is None


def test_the_archive_expires_and_results_stay(run: MadeProject) -> None:
    kept = {table.name: run.rows(table) for table in (ASSESSMENTS, SCORER_COVERAGE, HOURLY_PERFORMANCE)}
    removed = expire(run.lake, UpkeepSettings(keep_archive_days=2), NOON)

    assert (removed["agent_traces"], removed["trace_performance"], removed["trace_errors"]) == (6, 6, 6)
    assert run.rows(AGENT_TRACES) == run.rows(TRACE_PERFORMANCE) == run.rows(TRACE_ERRORS) == []
    assert {name: run.rows(table) for name, table in ((t.name, t) for t in TABLES) if name in kept} == kept


def test_the_oldest_kept_day_stays(run: MadeProject) -> None:
    before = run.versions()
    assert expire(run.lake, UpkeepSettings(keep_archive_days=3, keep_results_days=3), NOON) == {}
    assert run.versions() == before


def test_results_expire_after_their_time_and_deletion_requests_never(run: MadeProject) -> None:
    expire(run.lake, UpkeepSettings(keep_archive_days=1, keep_results_days=2), NOON)
    assert run.rows(ASSESSMENTS) == run.rows(SCORER_COVERAGE) == run.rows(HOURLY_PERFORMANCE) == []
    assert DELETED_TRACES.kept_with is None


def test_results_may_not_expire_before_their_traces() -> None:
    with pytest.raises(ValidationError, match="scorers would run again"):
        UpkeepSettings(keep_archive_days=30, keep_results_days=7)
    with pytest.raises(ValidationError, match="forever"):
        UpkeepSettings(keep_results_days=7)


def keeping(project: MadeProject, days: int) -> Settings:
    return project.settings.model_copy(update={"upkeep": UpkeepSettings(keep_archive_days=days)})


@pytest.mark.parametrize("asset", ["archived_traces", "hourly_performance"])
def test_an_expired_hour_is_neither_archived_nor_computed_again(run: MadeProject, asset: str) -> None:
    before = run.versions()
    result = (
        build_definitions(keeping(run, 1))
        .resolve_job_def("monitoring")
        .execute_in_process(
            partition_key=FIRST,
            asset_selection=[dg.AssetKey(asset)],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    )
    [failure] = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    assert failure is not None
    assert "[upkeep] keep_archive_days keeps" in (failure.cause or failure).message
    assert run.versions() == before


def test_a_command_for_expired_hours_names_the_setting(run: MadeProject) -> None:
    with pytest.raises(ValueError, match="keep_archive_days = 1 keeps; choose a later start"):
        whole_hours(keeping(run, 1), datetime(2026, 1, 1, 5, tzinfo=UTC), None)


def upkept(project: MadeProject, instance: dg.DagsterInstance) -> Upkept:
    return keep_up(project.lake, UpkeepSettings(keep_archive_days=1), NO_PREFIX, instance, None)


def test_rows_that_a_run_in_progress_may_read_are_kept(run: MadeProject) -> None:
    instance = dg.DagsterInstance.ephemeral()
    reader = create_run_for_test(
        instance, job_name=MONITORING, status=dg.DagsterRunStatus.STARTED, tags={RANGE_START: FIRST}
    )
    done = upkept(run, instance)
    assert (done.expired, reader.run_id in done.put_off) == ({}, True)
    assert len(run.rows(AGENT_TRACES)) == 6

    instance.report_run_canceled(reader)
    assert upkept(run, instance).expired["agent_traces"] == 6


def test_a_run_of_recent_hours_does_not_delay_upkeep(run: MadeProject) -> None:
    instance = dg.DagsterInstance.ephemeral()
    recent = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%d-%H:00}"
    create_run_for_test(
        instance, job_name=MONITORING, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": recent}
    )
    assert upkept(run, instance).expired["agent_traces"] == 6


def test_the_job_maintains_every_table(run: MadeProject) -> None:
    job = build_definitions(run.settings).resolve_job_def("upkeep_job")
    result = job.execute_in_process(run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
    [output] = [event.step_output_data for event in result.all_events if event.is_successful_output]
    assert {f"{table.name}/files_deleted" for table in TABLES} <= set(output.metadata)
    assert len(run.rows(AGENT_TRACES)) == 6


@pytest.mark.usefixtures("dagster_home")
def test_the_command_shows_every_table(
    run: MadeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = calling(monkeypatch, capsys, "upkeep")("--config", str(run.configure()))
    assert done.code == 0, done.error
    assert {row[0] for row in done.table()} >= {table.name for table in TABLES}
