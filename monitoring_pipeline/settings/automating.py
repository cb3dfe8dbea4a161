"""What runs by itself: the section [automation] of monitoring.toml."""

from __future__ import annotations

from pydantic import Field

from monitoring_pipeline.settings.base import Section


class AutomationSettings(Section):
    enabled: bool = Field(
        default=False,
        description="whether sensors and schedules start with Dagster; else each is switched on in the UI",
    )
    rescore_changed: bool = Field(
        default=False, description="score the latest hours again, by itself, when a scorer's digest changes"
    )
    rescore_look_back_hours: int = Field(
        default=168, ge=1, description="how many of the latest hours a changed scorer scores again"
    )
