"""The hours that a command or an API function works on."""

from __future__ import annotations

from datetime import UTC, datetime

from monitoring_pipeline.settings import Settings
from monitoring_pipeline.settings.upkeep import oldest_kept
from monitoring_pipeline.windows import HOUR, Window, floor_hour


def whole_hours(settings: Settings, start: datetime | None, end: datetime | None) -> Window:
    """The whole hours that [start, end) touches, up to the current one; default: the 24 hours before the end or now.

    Raises:
        ValueError: the start is not before the end, or lies before the archive's start; the message names both.
    """
    current_end = floor_hour(datetime.now(UTC)) + HOUR
    end = end or current_end
    start = start or max(end - 24 * HOUR, settings.archive.start)
    window_end = floor_hour(end) if floor_hour(end) == end else floor_hour(end) + HOUR
    window_start, window_end = floor_hour(start), min(window_end, current_end)
    if window_start >= window_end:
        raise ValueError(f"start {start:%Y-%m-%dT%H:%MZ} is not before end {min(end, window_end):%Y-%m-%dT%H:%MZ}")
    if window_start < settings.archive.start:
        raise ValueError(
            f"start {start:%Y-%m-%dT%H:%MZ} is before the archive's start; set [archive] start (now"
            f" {settings.archive.start:%Y-%m-%dT%H:%MZ}) to it or earlier"
        )
    kept_since = oldest_kept(settings.upkeep.keep_archive_days)
    if kept_since and window_start < kept_since:
        raise ValueError(
            f"start {start:%Y-%m-%dT%H:%MZ} is before {kept_since:%Y-%m-%dT%H:%MZ}, the first hour that [upkeep]"
            f" keep_archive_days = {settings.upkeep.keep_archive_days} keeps; choose a later start"
        )
    return Window(window_start, window_end)
