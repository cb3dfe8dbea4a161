"""`monitoring-pipeline upkeep`: retention, compaction and removal of old files."""

from __future__ import annotations

from monitoring_pipeline.cli.common import Config, settings_of


def upkeep(config: Config = None) -> None:
    """Remove rows past their retention, compact all tables, and delete files that no table uses.

    Completes a deletion on request that was interrupted.
    """
    settings = settings_of(config)
    from monitoring_pipeline.cli.console import console, show_upkeep
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.settings import config_folder
    from monitoring_pipeline.upkeep.deletion import finish
    from monitoring_pipeline.upkeep.maintenance import keep_up
    from monitoring_pipeline.upkeep.recount import Recount

    resources, names = build_resources(settings), settings.dagster.names
    lake, instance = resources["lake"], start_instance(config_folder(), names)

    def recount() -> Recount:
        return Recount.of(settings, lake, resources["tracking"])

    def say(message: str) -> None:
        console.print(message, soft_wrap=True, highlight=False, markup=False)

    finish(lake, recount, instance, names, None, say)
    show_upkeep(keep_up(lake, settings.upkeep, names, instance, None))
