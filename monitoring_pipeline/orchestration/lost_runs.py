"""Runs whose process is gone. Dagster's default launcher does not look after them: they would be in progress for ever,
and what waits for their hours would wait with them.
"""

import os

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, DefaultRunLauncher

from monitoring_pipeline.keys import HOST_TAG
from monitoring_pipeline.orchestration.runs import host

UNDER_WAY = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
LOOK_SECONDS = 30
GONE = "its process is gone: it was killed, or its machine was restarted"


def lost_runs_sensor(is_running: bool) -> dg.SensorDefinition:
    """The sensor `lost_runs`, which has Dagster know of runs that died without a word."""

    @dg.sensor(
        name="lost_runs",
        target=None,
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if is_running else dg.DefaultSensorStatus.STOPPED,
        description="Ends, as failed, the runs whose process is gone, so that their hours are asked for again.",
    )
    def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = end_lost_runs(context.instance)
        return dg.SkipReason(f"ended {', '.join(ended)}: {GONE}" if ended else "no run is lost")

    return lost_runs


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Record the runs of this machine whose process is gone as failed; returns their ids.

    Another launcher than the default one looks after its runs itself.
    """
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return []
    lost = [run for run in instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY)) if _is_lost(instance, run)]
    for run in lost:
        instance.report_run_failed(run, GONE)
    return [run.run_id for run in lost]


def _is_lost(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    if run.tags.get(HOST_TAG, host()) != host():  # a command on another machine
        return False
    pid = _pid(instance, run.run_id)
    return pid is not None and not _is_alive(pid) and not _has_ended(instance, run.run_id)


def _pid(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """The process of the run, as it has said last."""
    told = instance.get_records_for_run(run_id, of_type=DagsterEventType.ENGINE_EVENT, ascending=False).records
    for record in told:
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
    except PermissionError:  # it is there, and another user's
        return True
    return True


def _has_ended(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether it has ended well since it was listed."""
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished
