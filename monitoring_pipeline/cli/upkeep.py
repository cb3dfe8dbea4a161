"""`monitoring-pipeline upkeep`: retention, compaction and removal of old files."""

from __future__ import annotations

from monitoring_pipeline.cli.common import Config, settings_of


def upkeep(config: Config = None) -> None:
    """Remove rows past their retention, compact all tables, and delete files that no table uses."""
    settings = settings_of(config)
    from monitoring_pipeline.cli.console import show_upkeep
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.settings import config_folder
    from monitoring_pipeline.upkeep.maintenance import keep_up

    lake, names = build_resources(settings)["lake"], settings.dagster.names
    show_upkeep(keep_up(lake, settings.upkeep, names, start_instance(config_folder(), names), None))
