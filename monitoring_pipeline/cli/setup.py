"""`monitoring-pipeline setup`: create everything that a run needs."""

from __future__ import annotations

from typing import Annotated

import typer

from monitoring_pipeline.cli.common import Config, settings_of, shown
from monitoring_pipeline.lifecycle.setup import set_up


def setup(
    new_lake: Annotated[
        bool, typer.Option("--new-lake", help="Use the lake that is configured now, in place of the one used before.")
    ] = False,
    config: Config = None,
) -> None:
    """Create the lake's tables, apply the scorers' states, and set up Databricks if it is used.

    Prints a line for each thing created or found. A second call changes nothing.
    """
    settings = settings_of(config)
    from rich.console import Console

    console = Console(highlight=False)
    if new_lake:
        from monitoring_pipeline.orchestration.runs import start_instance
        from monitoring_pipeline.resources.build import build_resources
        from monitoring_pipeline.resources.known_lakes import forget_known
        from monitoring_pipeline.settings import config_folder

        forget_known(build_resources(settings)["lake"], start_instance(config_folder(), settings.dagster.names))
    for line in set_up(settings):
        console.print(f"[green]ok[/]   {shown(line)}", soft_wrap=True)
