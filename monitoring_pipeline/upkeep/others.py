"""Other runs of the pipeline that may read the lake while rows are removed from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg

from monitoring_pipeline.compat.dagster import NOT_FINISHED_STATUSES, active_backfills
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.keys import DELETE, PARTITION, RANGE_START, Names
from monitoring_pipeline.upkeep.lost_runs import end_lost_runs
from monitoring_pipeline.upkeep.turns import began_before

PATIENCE = timedelta(minutes=10)
POLL_SECONDS = 2.0
SHOWN = 5


def readers(instance: dg.DagsterInstance, names: Names, own_run_id: str | None, before: datetime) -> list[str]:
    """Return descriptions of the pipeline's runs and backfills in progress that may read rows older than `before`.

    These are runs without a partition or with an older one, except the caller's own run, and all backfills.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    backfills = active_backfills(instance)
    others = [run for run in runs if names.owns(run.job_name, run.asset_selection) and run.run_id != own_run_id]
    return [
        *(_described(run) for run in others if _reads(run, before)),
        *(f"backfill {each.backfill_id}" for each in backfills if names.owns(each.job_name, each.asset_selection)),
    ]


def begun(instance: dg.DagsterInstance, names: Names, own_run_id: str | None, before: datetime) -> list[str]:
    """Return descriptions of the pipeline's runs in progress that began before `before`, without the caller's own.

    Runs that delete traces are left out, because they take turns.
    """
    records = instance.get_run_records(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    return [
        _described(run)
        for run in (record.dagster_run for record in records if began_before(record, before))
        if names.owns(run.job_name, run.asset_selection)
        and run.run_id != own_run_id
        and run.job_name != names.definition(DELETE)
    ]


def wait_for_others(
    instance: dg.DagsterInstance,
    names: Names,
    own_run_id: str | None,
    before: datetime,
    on_wait: Callable[[str], None] = lambda message: None,
) -> None:
    """Wait until no other run of the pipeline that began before `before` is in progress; lost runs are ended.

    Raises:
        MonitoringError: one is still in progress after `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE.total_seconds()
    has_reported = False
    while found := begun(instance, names, own_run_id, before):
        if time.monotonic() >= deadline:
            raise MonitoringError(
                f"{named(found)} may be reading the rows to delete; wait for it, or end it in the UI, and try again"
            )
        if not has_reported:
            on_wait(f"waiting for {named(found)}")
            has_reported = True
        time.sleep(POLL_SECONDS)
        end_lost_runs(instance, names)


def named(found: list[str]) -> str:
    """Return the first runs that `readers` returned, and the number of the others."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _described(run: dg.DagsterRun) -> str:
    return f"run {run.run_id} of {run.job_name}"


def _reads(run: dg.DagsterRun, before: datetime) -> bool:
    key = run.tags.get(RANGE_START) or run.tags.get(PARTITION)
    if key is None:
        return True
    try:
        return datetime.fromisoformat(key[:10]).replace(tzinfo=UTC) < before  # an hourly or daily partition
    except ValueError:  # another kind of partition
        return True
