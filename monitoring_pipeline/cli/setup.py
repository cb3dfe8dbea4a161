"""`monitoring-pipeline setup`: create everything that a run needs."""

from __future__ import annotations

from monitoring_pipeline.cli.common import Config, settings_of, shown
from monitoring_pipeline.lifecycle.setup import set_up


def setup(config: Config = None) -> None:
    """Create the lake's tables, apply the scorers' states, and set up Databricks if it is used.

    Prints a line for each thing created or found. A second call changes nothing.
    """
    settings = settings_of(config)
    from rich.console import Console

    console = Console(highlight=False)
    for line in set_up(settings):
        console.print(f"[green]ok[/]   {shown(line)}", soft_wrap=True)
