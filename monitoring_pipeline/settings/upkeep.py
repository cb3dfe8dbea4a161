"""`[upkeep]`: how long the lake keeps traces, results and old files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Self

from pydantic import Field, model_validator

from monitoring_pipeline.settings.base import Section


class UpkeepSettings(Section):
    keep_archive_days: int | None = Field(
        default=None, ge=1, description="whole days that traces and their derived rows are kept; none: forever"
    )
    keep_results_days: int | None = Field(
        default=None,
        ge=1,
        description="whole days that assessments, ledger, quality and hourly figures are kept; none: forever",
    )
    keep_versions_hours: int = Field(
        default=168,
        ge=168,
        description="hours that files which a table no longer uses are kept; must exceed the longest run",
    )

    @model_validator(mode="after")
    def _results_outlive_the_archive(self) -> Self:
        results, archive = self.keep_results_days, self.keep_archive_days
        if results is not None and (archive is None or results < archive):
            raise ValueError(
                f"keep_results_days = {results} is less than keep_archive_days = {archive or 'forever'}: scorers "
                "would run again on traces whose results are gone; raise it, or lower keep_archive_days"
            )
        return self


def oldest_kept(keep_days: int | None, now: datetime | None = None) -> datetime | None:
    """The start (UTC) of the kept range, `keep_days` whole days before today; None if everything is kept."""
    if keep_days is None:
        return None
    today = (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=keep_days)
