"""Upkeep of the lake: what is due to go goes, small files become large ones, and old files are deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import dagster as dg

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import UpkeepSettings
from monitoring_pipeline.tables import TABLES
from monitoring_pipeline.upkeep.others import named, readers
from monitoring_pipeline.upkeep.retention import expire, first_read_by_none


@dataclass
class Upkept:
    """What upkeep did: rows removed by retention, and for each table what `LakeResource.maintain` returns.

    `put_off` says why nothing was removed; empty where nothing stood in the way.
    """

    expired: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    put_off: str = ""


def keep_up(
    lake: LakeResource,
    upkeep: UpkeepSettings,
    instance: dg.DagsterInstance,
    own_run_id: str | None,
    on_progress: Callable[[str], None] = lambda message: None,
) -> Upkept:
    """Remove what is older than it is kept, then compact every table and delete files that are no longer part of it.

    Rows that a run in progress may read stay until the next time. Files stay for [upkeep] keep_versions_hours, so that
    whoever reads a version of a table can read it to its end.

    Raises:
        LakeError: a table cannot be written; the next time goes on.
    """
    done = Upkept()
    cut = first_read_by_none(upkeep)
    if cut and (found := readers(instance, own_run_id, before=cut)):
        done.put_off = f"{named(found)} may read what is older than {cut:%Y-%m-%d}"
        on_progress(f"nothing removed: {done.put_off}")
    elif cut:
        done.expired = expire(lake, upkeep)
    for table in TABLES:
        done.files[table.name] = lake.maintain(table, upkeep.keep_versions_hours)
        on_progress(f"{table.name}: {done.files[table.name]['files_deleted']} files deleted")
    return done
