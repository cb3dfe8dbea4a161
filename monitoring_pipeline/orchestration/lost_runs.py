"""Marks runs whose process has died as failed.

Dagster's default launcher does not notice a dead process: its run would stay in progress forever and block everything
that waits for its hours.
"""

import os

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, DefaultRunLauncher

from monitoring_pipeline.keys import HOST_TAG, LOST_RUNS, Names
from monitoring_pipeline.orchestration.runs import host

STARTED = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
INTERVAL_SECONDS = 30
GONE = "its process is gone: it was killed, or its machine was restarted"


def lost_runs_sensor(names: Names, is_running: bool) -> dg.SensorDefinition:
    """The sensor `lost_runs`, which marks our runs whose process has died as failed.

    Runs of other pipelines on the same instance are left alone.
    """

    @dg.sensor(
        name=names.definition(LOST_RUNS),
        target=None,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if is_running else dg.DefaultSensorStatus.STOPPED,
        description="Marks runs whose process is gone as failed, so that their hours are requested again.",
    )
    def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = end_lost_runs(context.instance, names)
        return dg.SkipReason(f"ended {', '.join(ended)}: {GONE}" if ended else "no lost runs")

    return lost_runs


def end_lost_runs(instance: dg.DagsterInstance, names: Names) -> list[str]:
    """Mark the runs of this pipeline and machine whose process is gone as failed; returns their ids.

    Does nothing if the instance has another launcher than the default one: such launchers monitor their runs.
    """
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return []
    started = instance.get_runs(dg.RunsFilter(statuses=STARTED))
    lost = [run for run in started if names.owns(run.job_name, run.asset_selection) and _is_lost(instance, run)]
    for run in lost:
        instance.report_run_failed(run, GONE)
    return [run.run_id for run in lost]


def _is_lost(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    if run.tags.get(HOST_TAG, host()) != host():  # a command on another machine
        return False
    pid = _pid(instance, run.run_id)
    return pid is not None and not _is_alive(pid) and not _has_ended(instance, run.run_id)


def _pid(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """The process id that the run reported last."""
    reports = instance.get_records_for_run(run_id, of_type=DagsterEventType.ENGINE_EVENT, ascending=False).records
    for record in reports:
        event = record.event_log_entry.get_dagster_event()
        pid = event.engine_event_data.metadata.get("pid")
        if isinstance(pid, dg.TextMetadataValue) and pid.text:
            return int(pid.text)
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process exists and belongs to another user
        return True
    return True


def _has_ended(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run has ended since it was listed."""
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished
