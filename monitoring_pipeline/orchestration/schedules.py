"""Schedules: what is made by the clock, and not because something has changed. All times are UTC."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta

import dagster as dg

from monitoring_pipeline.keys import (
    DAILY_REPORT,
    DAILY_REPORT_KEY,
    DATASETS,
    WEEKLY_REPORT,
    WEEKLY_REPORT_KEY,
    dataset_key,
)
from monitoring_pipeline.orchestration.ops import LATEST_HOUR
from monitoring_pipeline.settings import ArchiveSettings, AutomationSettings, DatasetSettings
from monitoring_pipeline.settings.upkeep import oldest_kept

REPORTS_LOOKED_AT = 7  # days: how long Dagster may stand still without leaving a day without a report or dataset
WEEKS_LOOKED_AT = 4
UPKEEP = "upkeep_job"


def schedules(
    archive: ArchiveSettings,
    settings: AutomationSettings,
    job_names: Iterable[str],
    datasets: Sequence[DatasetSettings] = (),
    keep_archive_days: int | None = None,
) -> list[dg.ScheduleDefinition]:
    """The schedules for those of the jobs that there are."""
    status = dg.DefaultScheduleStatus.RUNNING if settings.enabled else dg.DefaultScheduleStatus.STOPPED
    by_job = {
        DAILY_REPORT: _daily_report(archive, status),
        WEEKLY_REPORT: _weekly_report(archive, status, keep_archive_days),
        DATASETS: _daily_datasets(archive, status, [dataset_key(entry.name) for entry in datasets]),
        LATEST_HOUR: dg.ScheduleDefinition(
            "latest_hour",
            job_name=LATEST_HOUR,
            cron_schedule="20 * * * *",
            default_status=status,
            description="Looks whether the latest full hour is there: where all stands still, nothing else does.",
        ),
        UPKEEP: dg.ScheduleDefinition(
            "upkeep",
            job_name=UPKEEP,
            cron_schedule="0 3 * * 0",
            default_status=status,
            description="Compaction, retention and the removal of old files, on Sundays.",
        ),
    }
    return [by_job[name] for name in job_names if name in by_job]


def _daily_report(archive: ArchiveSettings, status: dg.DefaultScheduleStatus) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="daily_report",
        job_name=DAILY_REPORT,
        cron_schedule="0 1 * * *",
        default_status=status,
        description=f"The report of yesterday, and of those of the last {REPORTS_LOOKED_AT} days that have had none "
        "since they were over.",
    )
    def daily_report(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        due = days_without_report(context.instance, archive.start, context.scheduled_execution_time)
        # Dagster never launches a key again, even after a failure: each tick has keys of its own.
        at = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}"
        yield from (dg.RunRequest(run_key=f"{day} at {at}", partition_key=day) for day in due)
        if not due:
            yield dg.SkipReason("the report of every day was made after the day was over")

    return daily_report


def _weekly_report(
    archive: ArchiveSettings, status: dg.DefaultScheduleStatus, keep_archive_days: int | None
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="weekly_report",
        job_name=WEEKLY_REPORT,
        cron_schedule="15 1 * * 1",
        default_status=status,
        description=f"The report of last week, and of those of the last {WEEKS_LOOKED_AT} weeks that have had none "
        "since they were over; after that of Sunday.",
    )
    def weekly_report(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time
        due = weeks_without_report(context.instance, archive.start, now, keep_archive_days)
        at = f"{now:%Y-%m-%dT%H:%MZ}"
        yield from (dg.RunRequest(run_key=f"week of {week} at {at}", partition_key=week) for week in due)
        if not due:
            yield dg.SkipReason("the report of every week was made after the week was over")

    return weekly_report


def _daily_datasets(
    archive: ArchiveSettings, status: dg.DefaultScheduleStatus, keys: Sequence[dg.AssetKey]
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="daily_datasets",
        job_name=DATASETS,
        cron_schedule="30 1 * * *",
        default_status=status,
        description=f"The datasets of yesterday, and those of the last {REPORTS_LOOKED_AT} days that were not made "
        "since the day was over; after the report.",
    )
    def daily_datasets(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        due: defaultdict[str, list[dg.AssetKey]] = defaultdict(list)
        for key in keys:
            for day in _days_without(context.instance, key, archive.start, context.scheduled_execution_time):
                due[day].append(key)
        at = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}"
        for day in sorted(due):
            yield dg.RunRequest(run_key=f"{day} at {at}", partition_key=day, asset_selection=due[day])
        if not due:
            yield dg.SkipReason("the datasets of every day were made after the day was over")

    return daily_datasets


def days_without_report(instance: dg.DagsterInstance, start: datetime, now: datetime) -> list[str]:
    """Those of the last days (from that of `start`, before that of `now`) whose report was not made since their end."""
    return _days_without(instance, dg.AssetKey(DAILY_REPORT_KEY), start, now)


def weeks_without_report(
    instance: dg.DagsterInstance, start: datetime, now: datetime, keep_archive_days: int | None = None
) -> list[str]:
    """The Mondays of those of the last weeks whose report was not made since their end.

    From the week of `start` to the one before that of `now`, without weeks of which the archive no longer keeps all.
    """
    midnight = datetime.combine(now.astimezone(UTC), time(), UTC)
    monday = midnight - timedelta(days=midnight.weekday())
    weeks = [monday - timedelta(weeks=ago) for ago in range(WEEKS_LOOKED_AT, 0, -1)]
    kept_since = oldest_kept(keep_archive_days, now) or weeks[0]
    key = dg.AssetKey(WEEKLY_REPORT_KEY)
    return [
        f"{week:%Y-%m-%d}"
        for week in weeks
        if week >= kept_since
        and week + timedelta(weeks=1) > start
        and not _was_made(instance, key, week, timedelta(weeks=1))
    ]


def _days_without(instance: dg.DagsterInstance, key: dg.AssetKey, start: datetime, now: datetime) -> list[str]:
    midnight = datetime.combine(now.astimezone(UTC), time(), UTC)
    days = [midnight - timedelta(days=ago) for ago in range(REPORTS_LOOKED_AT, 0, -1)]
    first = datetime.combine(start, time(), UTC)
    return [f"{day:%Y-%m-%d}" for day in days if day >= first and not _was_made(instance, key, day, timedelta(days=1))]


def _was_made(instance: dg.DagsterInstance, key: dg.AssetKey, start: datetime, length: timedelta) -> bool:
    """Whether the partition of the day or week that starts then was made when it was over."""
    made_after = dg.AssetRecordsFilter(
        asset_key=key,
        asset_partitions=[f"{start:%Y-%m-%d}"],
        after_timestamp=(start + length).timestamp(),
    )
    return bool(instance.fetch_materializations(made_after, limit=1).records)
