"""`monitoring-pipeline backfill`: scorers over past hours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline.cli.common import Config, End, Start, check_scorer_names, settings_of, window_of

if TYPE_CHECKING:
    from monitoring_pipeline.orchestration.backfills import ScorerOptions
    from monitoring_pipeline.settings import Settings
    from monitoring_pipeline.windows import Window


def backfill(
    scorer: Annotated[list[str], typer.Option(help="Scorer to run; repeatable.")],
    start: Start = None,
    end: End = None,
    sample_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the traces to score, instead of the scorer's own rate.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Score traces again whose result is an error.")] = False,
    newest_first: Annotated[bool, typer.Option(help="Start with the latest hour.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print what would be scored and what it may cost, without scoring.")
    ] = False,
    config: Config = None,
) -> None:
    """Score the archived traces of a range of hours that a scorer has not scored yet, even if it is stopped.

    A running Dagster daemon does the work, otherwise this process. Traces that have a result are not scored again.
    """
    settings = settings_of(config)
    check_scorer_names(settings, scorer)
    window = window_of(settings, start, end)
    from monitoring_pipeline.orchestration.backfills import ScorerOptions

    options = ScorerOptions(sample_rate, retry_failed, newest_first)
    names = list(dict.fromkeys(scorer))
    if dry_run:
        _print_forecasts(settings, window, names, options)
    else:
        raise typer.Exit(_run(settings, window, names, options))


def _print_forecasts(settings: Settings, window: Window, scorers: list[str], options: ScorerOptions) -> None:
    from monitoring_pipeline.cli.console import show_forecasts
    from monitoring_pipeline.orchestration.backfills import forecasts

    show_forecasts(window, forecasts(settings, window, scorers, options))


def _run(settings: Settings, window: Window, scorers: list[str], options: ScorerOptions) -> int:
    """Launch the backfills on a daemon, or run them and print the result; returns the exit code."""
    from monitoring_pipeline.cli.console import show_backfill, show_progress
    from monitoring_pipeline.orchestration.backfills import (
        address_of,
        daemon_is_running,
        launch_backfills,
        run_side_by_side,
    )
    from monitoring_pipeline.orchestration.build import build_definitions
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.settings import config_folder
    from monitoring_pipeline.windows import parts

    instance = start_instance(config_folder(), settings.dagster.names, build_resources(settings)["lake"])
    if daemon_is_running(instance):
        definitions = build_definitions(settings)
        for name, backfill_id in launch_backfills(definitions, settings, window, scorers, options, instance).items():
            typer.echo(f"{name}: launched; watch it at {address_of(backfill_id)}")
        return 0
    steps = len(parts(window, settings.backfill.max_partitions_per_run)) * len(scorers) * 3
    with show_progress(window, steps) as on_event:
        failed = run_side_by_side(settings, window, scorers, options, on_event)
    show_backfill(settings, window, scorers, failed)
    return 1 if failed else 0
