"""The command line.

An error that the user can fix is one line on stderr with exit code 1; wrong usage ends with exit code 2.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline import __version__
from monitoring_pipeline.cli import alerts, datasets, scorers
from monitoring_pipeline.cli.assess import assess
from monitoring_pipeline.cli.backfill import backfill
from monitoring_pipeline.cli.common import (
    Config,
    End,
    Start,
    check_scorer_names,
    settings_of,
    shown,
    window_of,
)
from monitoring_pipeline.cli.delete import delete
from monitoring_pipeline.cli.failures import report as report_failure
from monitoring_pipeline.cli.metrics import metrics
from monitoring_pipeline.cli.report import report
from monitoring_pipeline.cli.setup import setup
from monitoring_pipeline.cli.upkeep import upkeep
from monitoring_pipeline.errors import MonitoringError, SettingsError

if TYPE_CHECKING:
    from monitoring_pipeline.settings import Settings
    from monitoring_pipeline.windows import Window

# Each command imports settings, Dagster, MLflow and Spark when it needs them: --help must not wait for them.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Production monitoring for GenAI agents: archives, measures, scores and reports on MLflow traces.",
)
app.add_typer(scorers.app, name="scorers")
app.add_typer(alerts.app, name="alerts")
app.add_typer(datasets.app, name="datasets")
app.command()(assess)
app.command()(backfill)
app.command()(report)
app.command()(metrics)
app.command()(setup)
app.command()(upkeep)
app.command()(delete)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"monitoring-pipeline {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options that work without a command; their callbacks do the work."""


def main() -> None:
    """Run the console script `monitoring-pipeline`."""
    # Imports make a million objects that stay; looking through them for garbage takes a tenth of a command's time.
    gc.set_threshold(200_000, 20, 50)
    try:
        app()
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise
        report_failure(error)
        raise SystemExit(1) from None


@app.command()
def run(
    start: Start = None,
    end: End = None,
    scorer: Annotated[list[str] | None, typer.Option(help="Run only this scorer; repeatable.")] = None,
    config: Config = None,
) -> None:
    """Archive, measure, score and report on a range of hours; hours that would not change are left out."""
    settings = settings_of(config)
    window = window_of(settings, start, end)
    check_scorer_names(settings, scorer)
    raise typer.Exit(_run(settings, window, scorer))


@app.command()
def demo(config: Config = None) -> None:
    """Fill the embedded store with sample traffic if it is empty, and run the pipeline over it."""
    settings = settings_of(config)
    if not settings.uses_embedded_store:
        raise SettingsError(["a store is configured, but `demo` only fills the embedded one; use `run`"])
    raise typer.Exit(_demo(settings))


@app.command(hidden=True)
def make_run(config: Config = None) -> None:
    """Run `demo` if no store is configured, else `run` over the last 24 hours; `make run` calls it."""
    settings = settings_of(config)
    window = window_of(settings, None, None)
    raise typer.Exit(_demo(settings) if settings.uses_embedded_store else _run(settings, window, None))


@app.command()
def doctor(config: Config = None) -> None:
    """Check configuration, scorers, store, engine and lake, and print the findings."""
    from rich.console import Console

    console = Console()
    settings = settings_of(config)
    from monitoring_pipeline.cli.doctor import examine
    from monitoring_pipeline.settings import config_path

    console.print(f"[green]ok[/]   configuration: {shown(str(config_path(config) or 'defaults'))}", soft_wrap=True)
    healthy = True
    for finding in examine(settings, in_detail=True):
        mark = "[green]ok[/]  " if finding.healthy else "[red]FAIL[/]"
        console.print(f"{mark} {finding.subject}: {shown(finding.detail)}", soft_wrap=True)
        healthy = healthy and finding.healthy
    raise typer.Exit(0 if healthy else 1)


def _demo(settings: Settings) -> int:
    from monitoring_pipeline.demo.store import filled_store

    return _run(settings, filled_store(settings.mlflow.tracking_uri, echo=typer.echo), None)


def _run(settings: Settings, window: Window, scorers: list[str] | None) -> int:
    """Check the surroundings, run the pipeline and print the summary; returns the exit code."""
    from monitoring_pipeline.cli.doctor import examine

    problems = [f"{finding.subject}: {finding.detail}" for finding in examine(settings) if not finding.healthy]
    if problems:
        raise MonitoringError("\n".join(problems))
    # Imports that take seconds; a problem is reported without them.
    from monitoring_pipeline.cli.console import show_progress, show_summary, show_work
    from monitoring_pipeline.orchestration.build import build_definitions
    from monitoring_pipeline.orchestration.runs import ChainResult, run_chain, start_instance, step_count
    from monitoring_pipeline.orchestration.unchanged import Work, work_left
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.settings import config_folder

    instance = start_instance(config_folder(), settings.dagster.names, build_resources(settings)["lake"])
    work = Work([window], window.days()) if scorers else work_left(settings, window, instance)
    show_work(window, work)
    result = ChainResult({}, [])
    if work.hours or work.days:
        definitions = build_definitions(settings)
        with show_progress(window, step_count(definitions, settings, work, scorers)) as on_event:
            result = run_chain(definitions, settings, work, scorers, instance, on_event)
    show_summary(settings, window, result)
    return 0 if result.succeeded else 1
