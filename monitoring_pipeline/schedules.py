"""Schedules: what is made by the clock, and not because something has changed. All times are UTC."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time, timedelta

import dagster as dg

from monitoring_pipeline.automation import DAILY_REPORT_KEY
from monitoring_pipeline.jobs import DAILY_REPORT
from monitoring_pipeline.ops import LATEST_HOUR
from monitoring_pipeline.settings import ArchiveSettings, AutomationSettings

REPORTS_LOOKED_AT = 7  # days: how long Dagster may stand still without leaving a day without a report
UPKEEP = "upkeep_job"


def schedules(
    archive: ArchiveSettings, settings: AutomationSettings, job_names: Iterable[str]
) -> list[dg.ScheduleDefinition]:
    """The schedules for those of the jobs that there are."""
    status = dg.DefaultScheduleStatus.RUNNING if settings.enabled else dg.DefaultScheduleStatus.STOPPED
    by_job = {
        DAILY_REPORT: _daily_report(archive, status),
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


def days_without_report(instance: dg.DagsterInstance, start: datetime, now: datetime) -> list[str]:
    """Those of the last days (from that of `start`, before that of `now`) whose report was not made since their end."""
    midnight = datetime.combine(now.astimezone(UTC), time(), UTC)
    days = [midnight - timedelta(days=ago) for ago in range(REPORTS_LOOKED_AT, 0, -1)]
    first = datetime.combine(start, time(), UTC)
    return [f"{day:%Y-%m-%d}" for day in days if day >= first and not _was_reported(instance, day)]


def _was_reported(instance: dg.DagsterInstance, day: datetime) -> bool:
    """Whether the day's report was made when the day was over."""
    made_after = dg.AssetRecordsFilter(
        asset_key=dg.AssetKey(DAILY_REPORT_KEY),
        asset_partitions=[f"{day:%Y-%m-%d}"],
        after_timestamp=(day + timedelta(days=1)).timestamp(),
    )
    return bool(instance.fetch_materializations(made_after, limit=1).records)
