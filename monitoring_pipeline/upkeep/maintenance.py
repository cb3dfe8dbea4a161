"""Upkeep of the lake: expires old rows, compacts small files, and deletes files that no table version needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import dagster as dg

from monitoring_pipeline.keys import Names
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import UpkeepSettings
from monitoring_pipeline.tables import TABLES
from monitoring_pipeline.upkeep.others import named, readers
from monitoring_pipeline.upkeep.retention import expire, expires_before


@dataclass
class Upkept:
    """The result of upkeep: rows removed by retention, and the result of `LakeResource.maintain`, by table.

    `put_off` is the reason why retention was postponed, or empty.
    """

    expired: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    put_off: str = ""


def keep_up(
    lake: LakeResource,
    upkeep: UpkeepSettings,
    names: Names,
    instance: dg.DagsterInstance,
    own_run_id: str | None,
    on_progress: Callable[[str], None] = lambda message: None,
) -> Upkept:
    """Remove expired rows, then compact every table and delete its unused files.

    Rows that a run in progress may read stay until the next upkeep. Unused files stay for [upkeep] keep_versions_hours,
    so that readers of older versions can finish.

    Raises:
        LakeError: a table cannot be written; the next upkeep continues.
    """
    done = Upkept()
    cut = expires_before(upkeep)
    if cut and (found := readers(instance, names, own_run_id, before=cut)):
        done.put_off = f"{named(found)} may read rows older than {cut:%Y-%m-%d}"
        on_progress(f"nothing removed: {done.put_off}")
    elif cut:
        done.expired = expire(lake, upkeep)
    for table in TABLES:
        done.files[table.name] = lake.maintain(table, upkeep.keep_versions_hours)
        on_progress(f"{table.name}: {done.files[table.name]['files_deleted']} files deleted")
    return done
