"""`monitoring-pipeline upkeep`: retention, compaction and removal of old files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monitoring_pipeline.cli.common import Config, printable, settings_of
from monitoring_pipeline.errors import MonitoringError


def upkeep(
    repair: Annotated[
        bool, typer.Option("--repair", help="Only mend the logs of tables that cannot be opened; removes no rows.")
    ] = False,
    config: Config = None,
) -> None:
    """Remove rows past their retention, compact all tables, and delete files that no table uses.

    Completes a deletion on request that was interrupted.
    """
    settings = settings_of(config)
    if repair:
        _repair(settings.lake.location)
        return
    from monitoring_pipeline.cli.console import console, show_upkeep
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.settings import config_folder
    from monitoring_pipeline.upkeep.deletion import finish
    from monitoring_pipeline.upkeep.maintenance import keep_up
    from monitoring_pipeline.upkeep.recount import Recount

    resources, names = build_resources(settings), settings.dagster.names
    lake = resources["lake"]
    instance = start_instance(config_folder(), names, lake)

    def recount() -> Recount:
        return Recount.of(settings, lake, resources["tracking"])

    def say(message: str) -> None:
        console.print(message, soft_wrap=True, highlight=False, markup=False)

    finish(lake, recount, instance, names, None, say)
    show_upkeep(keep_up(lake, settings.upkeep, names, instance, None))


def _repair(location: str) -> None:
    """Mend each table's log and print what was done; tables that cannot be mended are named at the end."""
    from monitoring_pipeline.errors import LakeError
    from monitoring_pipeline.resources.delta_repair import repair
    from monitoring_pipeline.settings import in_catalog
    from monitoring_pipeline.tables import TABLES

    if "://" in location or in_catalog(location):
        raise MonitoringError(f"{location}: only a lake in folders is repaired here; use the tools of its store")
    failed: list[str] = []
    logs = [folder for table in TABLES if (folder := Path(location, table.name, "_delta_log")).is_dir()]
    for log in logs:
        try:
            for line in repair(log.parent) or [f"{log.parent}: nothing to repair"]:
                typer.echo(printable(line))
        except LakeError as error:
            failed.append(str(error))
    if not logs:
        raise MonitoringError(f"{location}: no tables there; check [lake] location")
    if failed:
        raise MonitoringError("\n".join(failed))
