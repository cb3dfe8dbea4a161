"""Runs whose process is gone are marked as failed, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.events import EngineEventData

from monitoring_pipeline.keys import ASSETS, HOST_TAG, NO_PREFIX
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.lost_runs import end_lost_runs
from monitoring_pipeline.orchestration.runs import host
from monitoring_pipeline.settings import DagsterSettings, Settings
from monitoring_pipeline_tests.made_project import QUALITY


@pytest.fixture
def instance(dagster_home: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with Dagster's default launcher."""
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def started(
    instance: dg.DagsterInstance,
    pid: int | None,
    job: str = "archive_job",
    asset: dg.AssetKey | None = None,
    tags: dict[str, str] | None = None,
) -> str:
    """A run in progress that has reported its process, if any."""
    selection = frozenset({asset}) if asset else None
    run = instance.add_run(
        dg.DagsterRun(job_name=job, status=DagsterRunStatus.STARTED, tags=tags, asset_selection=selection)
    )
    if pid is not None:
        instance.report_engine_event("Started process", run, EngineEventData.in_process(pid))
    return run.run_id


def status(instance: dg.DagsterInstance, run_id: str) -> DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_whose_process_is_gone_fails_once(instance: dg.DagsterInstance, dead_pid: int) -> None:
    run_id = started(instance, dead_pid)
    assert run_id in end_lost_runs(instance, NO_PREFIX)
    assert status(instance, run_id) == DagsterRunStatus.FAILURE
    assert run_id not in end_lost_runs(instance, NO_PREFIX)


def test_the_latest_process_of_a_run_counts(instance: dg.DagsterInstance, dead_pid: int) -> None:
    run_id = started(instance, dead_pid)
    run = instance.get_run_by_id(run_id)
    instance.report_engine_event("Executing steps", run, EngineEventData.in_process(os.getpid()))
    assert run_id not in end_lost_runs(instance, NO_PREFIX)


@pytest.mark.parametrize("case", ["alive", "not yet reported", "of a command on another machine"])
def test_other_runs_continue(instance: dg.DagsterInstance, dead_pid: int, case: str) -> None:
    pids = {"alive": os.getpid(), "not yet reported": None}
    tags = {HOST_TAG: "elsewhere"} if case.startswith("of a command") else {}
    run_id = started(instance, pids.get(case, dead_pid), tags=tags)
    assert run_id not in end_lost_runs(instance, NO_PREFIX)
    assert status(instance, run_id) == DagsterRunStatus.STARTED


def test_a_killed_command_on_this_machine_fails(instance: dg.DagsterInstance, dead_pid: int) -> None:
    assert started(instance, dead_pid, tags={HOST_TAG: host()}) in end_lost_runs(instance, NO_PREFIX)


def test_runs_of_another_launcher_are_left_alone(dead_pid: int) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        started(instance, dead_pid)
        assert end_lost_runs(instance, NO_PREFIX) == []


def test_the_sensor_leaves_runs_of_other_pipelines_alone(instance: dg.DagsterInstance, dead_pid: int) -> None:
    settings = Settings(scorers=[QUALITY], dagster=DagsterSettings(key_prefix=["team"]))
    sensor = build_definitions(settings).resolve_sensor_def("team_lost_runs")
    archive = dg.AssetKey(["team", "archived_traces"])
    ours = [started(instance, dead_pid, "team_archive_job"), started(instance, dead_pid, ASSETS, archive)]
    theirs = [started(instance, dead_pid), started(instance, dead_pid, ASSETS, dg.AssetKey("archived_traces"))]
    with dg.build_sensor_context(instance) as context:
        message = sensor.evaluate_tick(context).skip_message or ""
    assert all(run_id in message for run_id in ours)
    assert [status(instance, run_id) for run_id in ours] == [DagsterRunStatus.FAILURE] * 2
    assert [status(instance, run_id) for run_id in theirs] == [DagsterRunStatus.STARTED] * 2
