"""Lost runs: those whose process was killed, or whose machine was restarted.

Dagster's default launcher does not notice that, and nobody watches the runs of commands: such a run would stay in
progress forever, and everything that waits for it with it. So each run of ours records its process in its tags, and
whoever finds that process gone marks the run as failed.
"""

from __future__ import annotations

import os
from multiprocessing import parent_process

import dagster as dg
from pydantic import ValidationError

from monitoring_pipeline.keys import PROCESS_TAG, Names
from monitoring_pipeline.upkeep.processes import Process

# Of runs that a process has begun; a run without a process yet is Dagster's business.
BEGUN = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class Record(Process):
    """The process that executes a run. A run that repeats another gets its tags, and must not take them for its own."""

    run_id: str


def process_tags(names: Names, run_id: str, pid: int | None = None) -> dict[str, str]:
    """Return the tags by which a run of the pipeline records its process; by default this one."""
    process = Process.of(pid or os.getpid())
    return {**names.tags, PROCESS_TAG: Record(run_id=run_id, **process.model_dump()).model_dump_json()}


def record_process(instance: dg.DagsterInstance, run_id: str, names: Names) -> None:
    """Record the process of the run, unless it is recorded; its steps call this, in that process or in children."""
    run = instance.get_run_by_id(run_id)
    if run is None or recorded(run):
        return
    pid, parent = _reported_pid(instance, run_id), parent_process()
    if pid is not None and pid in (os.getpid(), parent.pid if parent else None):  # a step may run on another host
        instance.add_run_tags(run_id, process_tags(names, run_id, pid))


def recorded(run: dg.DagsterRun) -> Record | None:
    """Return the process that the run has recorded; None if it has recorded none."""
    try:
        record = Record.model_validate_json(run.tags.get(PROCESS_TAG, ""))
    except ValidationError:
        return None
    return record if record.run_id == run.run_id else None


def end_lost_runs(instance: dg.DagsterInstance, names: Names) -> list[str]:
    """Mark the runs of this pipeline and host whose process is gone as failed; returns their ids.

    All others are left alone: runs of other hosts, jobs and pipelines, and runs that have not recorded their process.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=BEGUN, tags=names.tags)):
        record = recorded(run)
        if not record or not names.owns(run.job_name, run.asset_selection) or not record.is_gone:
            continue
        latest = instance.get_run_by_id(run.run_id)
        if latest and not latest.is_finished:  # it has not ended since it was listed
            reason = f"its process {record.pid} is gone: it was killed, or its machine was restarted"
            instance.report_run_failed(latest, reason)
            ended.append(run.run_id)
    return ended


def _reported_pid(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """The id of the run's process, which its executor reports before the first step; not that of a step's process."""
    reports = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, ascending=False).records
    for report in reports:
        pid = report.event_log_entry.get_dagster_event().engine_event_data.metadata.get("pid")
        if isinstance(pid, dg.TextMetadataValue) and pid.text:
            return int(pid.text)
    return None
