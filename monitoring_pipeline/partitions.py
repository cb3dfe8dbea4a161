"""Partitions of the assets: hours and days, UTC, from the archive's start up to and including the current one."""

from __future__ import annotations

from datetime import datetime

import dagster as dg

from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.windows import Window


def hourly(start: datetime) -> dg.HourlyPartitionsDefinition:
    """Partitions such as 2026-01-01-05:00; the current, unfinished hour is one of them."""
    return dg.HourlyPartitionsDefinition(start_date=start, timezone="UTC", end_offset=1)


def daily(start: datetime) -> dg.DailyPartitionsDefinition:
    """Partitions such as 2026-01-01; today is one of them."""
    first_day = start.replace(hour=0)
    return dg.DailyPartitionsDefinition(start_date=first_day, timezone="UTC", end_offset=1)


def run_window(context: dg.AssetExecutionContext) -> Window:
    """The window of the partition, or of the range of partitions, that this run is for.

    Raises:
        LakeError: the archive no longer keeps it, so that what was made of it could not be made again.
    """
    start, end = context.partition_time_window
    kept_since = context.resources.lake.kept_since
    if kept_since and start < kept_since:
        raise LakeError(
            f"{start:%Y-%m-%d %H:%M} is before {kept_since:%Y-%m-%d}, the first day that [upkeep] keep_archive_days "
            "keeps; what was made of earlier traces stays as it is"
        )
    return Window(start, end)
