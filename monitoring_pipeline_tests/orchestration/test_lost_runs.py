"""The sensor `lost_runs`, and what runs record on themselves."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.utils import make_new_run_id

from monitoring_pipeline.keys import NO_PREFIX, PIPELINE_TAG, PROCESS_TAG, Names
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.naming import executor, our_step
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


def look(context: dg.OpExecutionContext) -> None:
    """Reports the process of the step, and that of the run as it is recorded now."""
    run = context.instance.get_run_by_id(context.run_id)
    record = recorded(run) if run else None
    context.log_event(
        dg.AssetObservation("look", metadata={"step": os.getpid(), "run": record.pid if record else None})
    )


our_look = dg.op(name="our_look")(our_step(TEAM)(look))
their_look = dg.op(name="their_look")(look)


@dg.job
def of_another_location() -> None:
    """A job with an executor of Dagster's own and a step of ours."""
    our_look()


@dg.job(executor_def=executor(DagsterSettings(key_prefix=["team"], executor="in_process")))
def in_one_process() -> None:
    """A job with our executor; its first step is not ours."""
    their_look()


@dg.job(executor_def=executor(DagsterSettings(key_prefix=["team"], executor="multiprocess")))
def in_several_processes() -> None:
    """As `in_one_process`, with a process for each step."""
    their_look()


@pytest.mark.parametrize(
    ("job", "config"),
    [
        ("of_another_location", {"in_process": {}}),
        ("of_another_location", {"multiprocess": {}}),
        ("in_one_process", {"retries": {"disabled": {}}}),
        ("in_several_processes", {"max_concurrent": 1}),
    ],
)
def test_a_run_records_the_process_that_executes_it(
    instance: dg.DagsterInstance, job: str, config: dict[str, Any]
) -> None:
    in_process = job == "in_one_process" or "in_process" in config
    config = {"execution": {"config": config}, "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.execute_job(dg.reconstructable(globals()[job]), instance, run_config=config) as result:
        assert result.success
        run = instance.get_run_by_id(result.run_id)
        [seen] = [event for event in result.all_events if event.is_asset_observation]
    assert run is not None
    record = recorded(run)
    assert record is not None
    assert Process(**record.model_dump(exclude={"run_id"})) == Process.of(os.getpid())
    assert run.tags[PIPELINE_TAG] == "team"
    pids = {name: value.value for name, value in seen.asset_observation_data.asset_observation.metadata.items()}
    assert pids["run"] == os.getpid()
    assert (pids["step"] == os.getpid()) == in_process
