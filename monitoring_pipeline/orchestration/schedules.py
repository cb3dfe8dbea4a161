"""Schedules: what runs at fixed times, whether or not something has changed. All times are UTC."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta

import dagster as dg

from monitoring_pipeline.keys import (
    DAILY_REPORT,
    DAILY_REPORT_KEY,
    DATASETS,
    LATEST_HOUR,
    NO_PREFIX,
    UPKEEP,
    WEEKLY_REPORT,
    WEEKLY_REPORT_KEY,
    Names,
    dataset_key,
)
from monitoring_pipeline.settings import ArchiveSettings, Settings
from monitoring_pipeline.settings.upkeep import oldest_kept

LOOK_BACK_DAYS = 7  # how long Dagster may be down without leaving a day without a report or dataset
LOOK_BACK_WEEKS = 4


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """The schedules of reports, datasets (if configured), the latest hour and upkeep."""
    names = settings.dagster.names
    status = dg.DefaultScheduleStatus.RUNNING if settings.automation.enabled else dg.DefaultScheduleStatus.STOPPED
    return [
        _daily_report(settings.archive, names, status),
        _weekly_report(settings.archive, names, status, settings.upkeep.keep_archive_days),
        *([_daily_datasets(settings, names, status)] if settings.datasets else []),
        dg.ScheduleDefinition(
            names.definition("latest_hour"),
            job_name=names.definition(LATEST_HOUR),
            cron_schedule="20 * * * *",
            default_status=status,
            description="Checks that the latest full hour has data even when no asset runs.",
        ),
        dg.ScheduleDefinition(
            names.definition("upkeep"),
            job_name=names.definition(UPKEEP),
            cron_schedule="0 3 * * 0",
            default_status=status,
            description="Compacts the tables, applies retention and removes old files every Sunday.",
        ),
    ]


def _daily_report(archive: ArchiveSettings, names: Names, status: dg.DefaultScheduleStatus) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=names.definition("daily_report"),
        job_name=names.definition(DAILY_REPORT),
        cron_schedule="0 1 * * *",
        default_status=status,
        description="Writes the report of yesterday, and of every other day of the last "
        f"{LOOK_BACK_DAYS} whose report was not written after the day ended.",
    )
    def daily_report(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        due = days_without_report(context.instance, archive.start, context.scheduled_execution_time, names)
        # Dagster never launches a key again, even after a failure: each tick has its own keys.
        at = f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}"
        yield from (dg.RunRequest(run_key=f"{day} at {at}", partition_key=day) for day in due)
        if not due:
            yield dg.SkipReason("the report of every day was written after the day ended")

    return daily_report


def _weekly_report(
    archive: ArchiveSettings, names: Names, status: dg.DefaultScheduleStatus, keep_archive_days: int | None
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=names.definition("weekly_report"),
        job_name=names.definition(WEEKLY_REPORT),
        cron_schedule="15 1 * * 1",
        default_status=status,
        description="Writes the report of last week, after that of Sunday, and of every other week of the last "
        f"{LOOK_BACK_WEEKS} whose report was not written after the week ended.",
    )
    def weekly_report(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time
        due = weeks_without_report(context.instance, archive.start, now, keep_archive_days, names)
        at = f"{now:%Y-%m-%dT%H:%MZ}"
        yield from (dg.RunRequest(run_key=f"week of {week} at {at}", partition_key=week) for week in due)
        if not due:
            yield dg.SkipReason("the report of every week was written after the week ended")

    return weekly_report


def _daily_datasets(settings: Settings, names: Names, status: dg.DefaultScheduleStatus) -> dg.ScheduleDefinition:
    keys = [names.key(dataset_key(entry.name)) for entry in settings.datasets]

    @dg.schedule(
        name=names.definition("daily_datasets"),
        job_name=names.definition(DATASETS),
        cron_schedule="30 1 * * *",
        default_status=status,
        description="Builds the datasets of yesterday, after the report, and of every other day of the last "
        f"{LOOK_BACK_DAYS} whose datasets were not built after the day ended.",
    )
    def daily_datasets(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        now = context.scheduled_execution_time
        due: defaultdict[str, list[dg.AssetKey]] = defaultdict(list)
        for key in keys:
            for day in _days_without(context.instance, key, settings.archive.start, now):
                due[day].append(key)
        at = f"{now:%Y-%m-%dT%H:%MZ}"
        for day in sorted(due):
            yield dg.RunRequest(run_key=f"{day} at {at}", partition_key=day, asset_selection=due[day])
        if not due:
            yield dg.SkipReason("the datasets of every day were built after the day ended")

    return daily_datasets


def days_without_report(
    instance: dg.DagsterInstance, start: datetime, now: datetime, names: Names = NO_PREFIX
) -> list[str]:
    """The days of the look-back, from the day of `start` on, whose report was not written after the day ended."""
    return _days_without(instance, names.key(DAILY_REPORT_KEY), start, now)


def weeks_without_report(
    instance: dg.DagsterInstance,
    start: datetime,
    now: datetime,
    keep_archive_days: int | None = None,
    names: Names = NO_PREFIX,
) -> list[str]:
    """The Mondays of the weeks of the look-back whose report was not written after the week ended.

    Covers the week of `start` to the last full week before `now`, without weeks the archive no longer keeps in full.
    """
    midnight = datetime.combine(now.astimezone(UTC), time(), UTC)
    monday = midnight - timedelta(days=midnight.weekday())
    weeks = [monday - timedelta(weeks=ago) for ago in range(LOOK_BACK_WEEKS, 0, -1)]
    kept_since = oldest_kept(keep_archive_days, now) or weeks[0]
    key = names.key(WEEKLY_REPORT_KEY)
    return [
        f"{week:%Y-%m-%d}"
        for week in weeks
        if week >= kept_since
        and week + timedelta(weeks=1) > start
        and not _was_made(instance, key, week, timedelta(weeks=1))
    ]


def _days_without(instance: dg.DagsterInstance, key: dg.AssetKey, start: datetime, now: datetime) -> list[str]:
    midnight = datetime.combine(now.astimezone(UTC), time(), UTC)
    days = [midnight - timedelta(days=ago) for ago in range(LOOK_BACK_DAYS, 0, -1)]
    first = datetime.combine(start, time(), UTC)
    return [f"{day:%Y-%m-%d}" for day in days if day >= first and not _was_made(instance, key, day, timedelta(days=1))]


def _was_made(instance: dg.DagsterInstance, key: dg.AssetKey, start: datetime, length: timedelta) -> bool:
    """Whether the partition of the day or week that starts at `start` was materialised after its end."""
    made_after = dg.AssetRecordsFilter(
        asset_key=key,
        asset_partitions=[f"{start:%Y-%m-%d}"],
        after_timestamp=(start + length).timestamp(),
    )
    return bool(instance.fetch_materializations(made_after, limit=1).records)
