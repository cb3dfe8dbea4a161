"""Archive runs: those in progress, those the sensor requested today, and the hours it has given up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter

from monitoring_pipeline.errors import first_line
from monitoring_pipeline.keys import (
    ARCHIVE,
    ARCHIVE_KEY,
    ASSETS,
    ATTEMPT_TAG,
    COUNTS_TAG,
    MONITORING,
    NEW_TRACES,
    REQUESTED_BY_TAG,
    Names,
    partition_key,
)
from monitoring_pipeline.orchestration.partitions import hours_of

if TYPE_CHECKING:
    from dagster import RunRecord

    from monitoring_pipeline.sources.base import HourCounts

# A run that reads traces logs a message every few thousand. One that was killed with its machine logs nothing more.
SILENCE = timedelta(minutes=15)
FAILED = (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
NOT_FINISHED = (
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
)
REASON_CHARACTERS = 300


@dataclass(frozen=True)
class RequestedRun:
    """A run that the sensor requested: its hours with the source's counts (`text_of`), and its outcome."""

    run_id: str
    created_at: datetime
    counts: dict[datetime, str]
    attempt: str  # such as 2/3
    has_ended: bool
    has_failed: bool


@dataclass(frozen=True)
class GivenUpHour:
    """An hour that the sensor does not request again today: the number of failed runs, the last one and its error."""

    hour: datetime
    attempts: int
    run_id: str
    reason: str


def text_of(counts: HourCounts) -> str:
    """The counts as a short text without spaces: traces/in progress/assessments, and a hash of the mark."""
    mark = f"/{hashlib.sha256(counts.mark.encode()).hexdigest()[:8]}" if counts.mark else ""
    return f"{counts.traces}/{counts.in_progress}/{counts.assessments}{mark}"


def hours_in_progress(instance: dg.DagsterInstance, names: Names, now: datetime) -> set[datetime]:
    """The hours that queued or running runs archive, whoever launched them, except runs that have fallen silent."""
    hours: set[datetime] = set()
    for record in instance.get_run_records(filters=RunsFilter(statuses=list(NOT_FINISHED))):
        if _archives(record.dagster_run, names) and not _is_silent(instance, record, now):
            hours.update(hours_of(record.dagster_run))
    return hours


def requested_today(instance: dg.DagsterInstance, names: Names, now: datetime) -> list[RequestedRun]:
    """The runs that the sensor has requested since midnight (UTC), the latest first."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    tagged = RunsFilter(tags={REQUESTED_BY_TAG: names.definition(NEW_TRACES)}, created_after=midnight)
    return [_requested(instance, record, now) for record in instance.get_run_records(filters=tagged)]


def given_up(instance: dg.DagsterInstance, names: Names, now: datetime | None = None) -> list[GivenUpHour]:
    """The hours that the sensor does not request again today because their last attempt failed; oldest first.

    Hours that another run has archived since are left out.
    """
    now = now or datetime.now(UTC)
    last: dict[datetime, RequestedRun] = {}
    for run in requested_today(instance, names, now):
        for hour in run.counts:
            last.setdefault(hour, run)
    found = []
    for hour, run in sorted(last.items()):
        attempt, attempts = map(int, run.attempt.split("/"))
        if run.has_failed and attempt >= attempts and not _archived_since(instance, names, hour, run.created_at):
            found.append(GivenUpHour(hour, attempt, run.run_id, _reason(instance, run.run_id)))
    return found


def _requested(instance: dg.DagsterInstance, record: RunRecord, now: datetime) -> RequestedRun:
    run = record.dagster_run
    is_lost = run.status in NOT_FINISHED and _is_silent(instance, record, now)
    return RequestedRun(
        run_id=run.run_id,
        created_at=record.create_timestamp,
        counts=dict(zip(hours_of(run), run.tags[COUNTS_TAG].split(), strict=True)),
        attempt=run.tags[ATTEMPT_TAG],
        has_ended=run.is_finished or is_lost,
        has_failed=run.status in FAILED or is_lost,
    )


def _archives(run: dg.DagsterRun, names: Names) -> bool:
    if run.asset_selection is not None:
        return names.key(ARCHIVE_KEY) in run.asset_selection
    return run.job_name in (names.definition(ARCHIVE), names.definition(MONITORING), ASSETS)


def _is_silent(instance: dg.DagsterInstance, record: RunRecord, now: datetime) -> bool:
    """Whether a run that is not waiting in the queue has logged nothing for `SILENCE`."""
    if record.dagster_run.status == DagsterRunStatus.QUEUED or now - record.update_timestamp < SILENCE:
        return False
    latest = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    return not latest or now - datetime.fromtimestamp(latest[0].event_log_entry.timestamp, UTC) >= SILENCE


def _archived_since(instance: dg.DagsterInstance, names: Names, hour: datetime, moment: datetime) -> bool:
    later = dg.AssetRecordsFilter(
        asset_key=names.key(ARCHIVE_KEY),
        asset_partitions=[partition_key(hour)],
        after_timestamp=moment.timestamp(),
    )
    return bool(instance.fetch_materializations(later, limit=1).records)


def _reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """Why the run failed, in one line."""
    failures = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED}
    records = instance.get_records_for_run(run_id, of_type=failures, limit=1).records
    if not records:
        return "it fell silent"
    event: Any = records[0].event_log_entry.get_dagster_event()
    error = event.step_failure_data.error if event.is_step_failure else None
    raised = error.cause or error if error else None  # Dagster's own error wraps the one that was raised
    return first_line(RuntimeError(raised.message if raised else event.message or ""))[:REASON_CHARACTERS]
