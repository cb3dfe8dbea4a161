"""Partitions of the assets: hours and days, UTC, from the archive's start up to and including the current one."""

from __future__ import annotations

from datetime import datetime

import dagster as dg

from monitoring_pipeline.windows import Window


def hourly(start: datetime) -> dg.HourlyPartitionsDefinition:
    """Partitions such as 2026-01-01-05:00; the current, unfinished hour is one of them."""
    return dg.HourlyPartitionsDefinition(start_date=start, timezone="UTC", end_offset=1)


def daily(start: datetime) -> dg.DailyPartitionsDefinition:
    """Partitions such as 2026-01-01; today is one of them."""
    first_day = start.replace(hour=0)
    return dg.DailyPartitionsDefinition(start_date=first_day, timezone="UTC", end_offset=1)


def run_window(context: dg.AssetExecutionContext) -> Window:
    """The window of the partition, or of the range of partitions, that this run is for."""
    start, end = context.partition_time_window
    return Window(start, end)
