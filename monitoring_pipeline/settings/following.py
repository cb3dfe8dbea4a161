"""How the sensor follows the source: the section [sensor] of monitoring.toml."""

from __future__ import annotations

from pydantic import Field

from monitoring_pipeline.settings.base import Section


class SensorSettings(Section):
    interval_seconds: int = Field(default=60, ge=10, description="from one look at the source to the next")
    look_back_hours: int = Field(
        default=48, ge=1, le=744, description="hours that are compared at each look; of the days before, one a look"
    )
    current_hour_refresh_minutes: int = Field(
        default=5, ge=1, le=60, description="how old the archive of the current hour may become while traces arrive"
    )
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="runs a UTC day for one state of an hour before it is given up"
    )
