"""The sensor `lost_runs`, and what runs record on themselves."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.utils import make_new_run_id

from monitoring_pipeline.keys import NO_PREFIX, PIPELINE_TAG, PROCESS_TAG, Names
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.naming import our_step
from monitoring_pipeline.settings import DagsterSettings, Settings
from monitoring_pipeline.upkeep.lost_runs import process_tags, recorded
from monitoring_pipeline.upkeep.processes import Process
from monitoring_pipeline_tests.made_project import QUALITY

TEAM = Names(key_prefix=("team",))


@pytest.fixture
def instance(dagster_home: Path) -> Iterator[dg.DagsterInstance]:
    """An instance whose runs are in files, as processes of steps need it."""
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_the_sensor_ends_the_lost_runs_of_its_own_pipeline(instance: dg.DagsterInstance) -> None:
    settings = Settings(scorers=[QUALITY], dagster=DagsterSettings(key_prefix=["team"]))
    sensor = build_definitions(settings).resolve_sensor_def("team_lost_runs")

    def lost(names: Names) -> dg.DagsterRun:
        run_id, job = make_new_run_id(), names.definition("archive_job")
        tags = process_tags(names, run_id)
        tags[PROCESS_TAG] = tags[PROCESS_TAG].replace('"started":"', '"started":"before ')
        return instance.add_run(dg.DagsterRun(job_name=job, run_id=run_id, status=DagsterRunStatus.STARTED, tags=tags))

    ours, theirs = lost(TEAM), lost(NO_PREFIX)
    with dg.build_sensor_context(instance) as context:
        assert ours.run_id in (sensor.evaluate_tick(context).skip_message or "")
        assert sensor.evaluate_tick(context).skip_message == "no lost runs"
    [failed] = instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.FAILURE]))
    assert failed.run_id == ours.run_id
    [started] = instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED]))
    assert started.run_id == theirs.run_id


@dg.op
@our_step(TEAM)
def look(context: dg.OpExecutionContext) -> None:
    """Reports the process of the step."""
    context.log_event(dg.AssetObservation("look", metadata={"pid": os.getpid()}))


@dg.job
def looking() -> None:
    """A job of one step of ours."""
    look()


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_a_run_records_the_process_that_executes_it(instance: dg.DagsterInstance, executor: str) -> None:
    config = {"execution": {"config": {executor: {}}}, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.execute_job(dg.reconstructable(looking), instance, run_config=config) as result:
        assert result.success
        run = instance.get_run_by_id(result.run_id)
        [seen] = [event for event in result.all_events if event.is_asset_observation]
    assert run is not None
    record = recorded(run)
    assert record is not None
    assert Process(**record.model_dump(exclude={"run_id"})) == Process.of(os.getpid())
    assert run.tags[PIPELINE_TAG] == "team"
    step_pid = seen.asset_observation_data.asset_observation.metadata["pid"].value
    assert (step_pid == os.getpid()) == (executor == "in_process")
