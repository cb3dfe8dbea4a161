"""What the functions of the api share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import MonitoringError

if TYPE_CHECKING:
    from monitoring_pipeline.settings import Settings
    from monitoring_pipeline.windows import Window


def window_of(settings: Settings, start: datetime | None, end: datetime | None) -> Window:
    """The whole hours from `start` to `end`, as far as they are given."""
    from monitoring_pipeline.settings.hours import whole_hours

    try:
        return whole_hours(settings, start.astimezone(UTC) if start else None, end.astimezone(UTC) if end else None)
    except ValueError as error:
        raise MonitoringError(str(error)) from error
