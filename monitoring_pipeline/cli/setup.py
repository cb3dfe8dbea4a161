"""`monitoring-pipeline setup`: everything that a run needs, made where it is not there yet."""

from __future__ import annotations

from monitoring_pipeline.cli.common import Config, settings_of
from monitoring_pipeline.lifecycle.setup import set_up


def setup(config: Config = None) -> None:
    """Make the lake's tables, bring the scorers to their state, and set up what Databricks is to do.

    Prints what was made or found, line by line. Running it again changes nothing.
    """
    settings = settings_of(config)
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for line in set_up(settings):
        console.print(f"[green]ok[/]   {escape(line)}", soft_wrap=True)
