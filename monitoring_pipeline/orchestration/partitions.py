"""Partitions of the assets: hours, days and weeks, UTC, from the archive's start up to the current one."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg

from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.keys import PARTITION, RANGE_END, RANGE_START
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.windows import HOUR, Window

HOURLY_KEY, DAILY_KEY = "%Y-%m-%d-%H:%M", "%Y-%m-%d"


def hourly(start: datetime) -> dg.HourlyPartitionsDefinition:
    """Partitions such as 2026-01-01-05:00, including the current, unfinished hour."""
    return dg.HourlyPartitionsDefinition(start_date=start, timezone="UTC", end_offset=1)


def daily(start: datetime) -> dg.DailyPartitionsDefinition:
    """Partitions such as 2026-01-01, including today."""
    first_day = start.replace(hour=0)
    return dg.DailyPartitionsDefinition(start_date=first_day, timezone="UTC", end_offset=1)


def weekly(start: datetime) -> dg.WeeklyPartitionsDefinition:
    """Partitions such as 2025-12-29, the Monday of each week, including the current week."""
    monday = start.replace(hour=0) - timedelta(days=start.weekday())
    return dg.WeeklyPartitionsDefinition(start_date=monday, day_offset=1, timezone="UTC", end_offset=1)


def hours_of(run: dg.DagsterRun) -> list[datetime]:
    """The hours whose partitions a run is for; none if its partitions are days or weeks, or it has none."""
    try:
        first, last = (datetime.strptime(key, HOURLY_KEY).replace(tzinfo=UTC) for key in _range(run))
    except ValueError:
        return []
    return [*Window(first, last + HOUR).hours()]


def days_of(run: dg.DagsterRun) -> set[date]:
    """The days that the partitions of a run belong to, hourly or daily."""
    try:
        first, last = (datetime.strptime(key, DAILY_KEY).replace(tzinfo=UTC) for key in _range(run))
    except ValueError:
        return {hour.date() for hour in hours_of(run)}
    return {*Window(first, last + HOUR).days()}


def _range(run: dg.DagsterRun) -> tuple[str, str]:
    partition = run.tags.get(PARTITION, "")
    return run.tags.get(RANGE_START, partition), run.tags.get(RANGE_END, partition)


def run_window(context: dg.AssetExecutionContext, lake: LakeResource) -> Window:
    """The window of the partition or range of partitions of this run.

    Raises:
        LakeError: the archive no longer keeps the window, so that its tables cannot be computed again.
    """
    start, end = context.partition_time_window
    check_kept(lake, start)
    return Window(start, end)


def check_kept(lake: LakeResource, start: datetime) -> None:
    """Raise LakeError if the archive no longer keeps traces from `start` on."""
    kept_since = lake.kept_since
    if kept_since and start < kept_since:
        raise LakeError(
            f"{start:%Y-%m-%d %H:%M} is before {kept_since:%Y-%m-%d}, the first day that [upkeep] keep_archive_days "
            "keeps; tables and reports of earlier traces stay as they are"
        )
