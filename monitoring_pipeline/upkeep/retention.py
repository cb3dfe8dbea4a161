"""Retention: removes whole days past the limits of [upkeep] from the tables of traces and of results."""

from __future__ import annotations

from datetime import UTC, datetime

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import UpkeepSettings
from monitoring_pipeline.settings.upkeep import oldest_kept
from monitoring_pipeline.tables import TABLES


def expires_before(upkeep: UpkeepSettings) -> datetime | None:
    """Return the time before which some rows expire; None if everything is kept forever."""
    cuts = [oldest_kept(days) for days in (upkeep.keep_archive_days, upkeep.keep_results_days)]
    return max((cut for cut in cuts if cut is not None), default=None)


def expire(lake: LakeResource, upkeep: UpkeepSettings, now: datetime | None = None) -> dict[str, int]:
    """Remove expired days; returns the number of removed rows by table, without tables that lost none.

    Raises:
        LakeError: a table cannot be written; the next upkeep continues.
    """
    days = {"archive": upkeep.keep_archive_days, "results": upkeep.keep_results_days, None: None}
    removed: dict[str, int] = {}
    for table in TABLES:
        cut = oldest_kept(days[table.kept_with], now or datetime.now(UTC))
        if cut and (rows := lake.remove_before(table, cut.date())):
            removed[table.name] = rows
    return removed
