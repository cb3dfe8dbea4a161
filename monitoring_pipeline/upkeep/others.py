"""Other runs that may be reading the lake while something is taken out of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.keys import PARTITION, RANGE_START

PATIENCE = timedelta(minutes=10)
POLL_SECONDS = 2.0
SHOWN = 5


def readers(instance: dg.DagsterInstance, own_run_id: str | None, before: datetime | None = None) -> list[str]:
    """The runs and backfills that have not ended, but for our own, in words.

    With `before`, only those that may read what is older: runs of no partition, or of one that is, and all backfills.
    """
    from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionsFilter, BulkActionStatus
    from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

    runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    active = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    backfills = instance.get_backfills(filters=BulkActionsFilter(statuses=active))
    return [
        *(f"run {run.run_id} of {run.job_name}" for run in runs if run.run_id != own_run_id and _reads(run, before)),
        *(f"backfill {backfill.backfill_id}" for backfill in backfills),
    ]


def wait_for_others(
    instance: dg.DagsterInstance,
    own_run_id: str | None,
    on_wait: Callable[[str], None] = lambda message: None,
) -> None:
    """Wait until no other run or backfill is in progress.

    Raises:
        MonitoringError: one still is after `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE.total_seconds()
    told = False
    while found := readers(instance, own_run_id):
        if time.monotonic() >= deadline:
            raise MonitoringError(
                f"{named(found)} may be reading what is to be deleted; wait for it, or end it in the UI, and try again"
            )
        if not told:
            on_wait(f"waiting for {named(found)}")
            told = True
        time.sleep(POLL_SECONDS)


def named(found: list[str]) -> str:
    """The first of what `readers` found."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _reads(run: dg.DagsterRun, before: datetime | None) -> bool:
    key = run.tags.get(RANGE_START) or run.tags.get(PARTITION)
    if before is None or key is None:
        return True
    try:
        return datetime.fromisoformat(key[:10]).replace(tzinfo=UTC) < before  # of an hour or a day
    except ValueError:  # a partition of another kind, of another project
        return True
