"""Partitions of the assets: hours, days and weeks, UTC, from the archive's start up to the current one."""

from __future__ import annotations

from datetime import datetime, timedelta

import dagster as dg

from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.windows import Window


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
