"""The command line. Errors that a user can mend are a line on stderr and exit code 1; wrong usage is exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.windows import HOUR, Window, floor_hour, parse_utc

if TYPE_CHECKING:
    from monitoring_pipeline.settings import Settings

# Settings, Dagster, MLflow and Spark are imported by the commands that need them: --help must not wait for them.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Production monitoring for GenAI agents: MLflow traces archived, measured, scored and reported on.",
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Configuration file; else MONITORING_CONFIG, else ./monitoring.toml where it exists."
    ),
]


def main() -> None:
    """The console script `monitoring-pipeline`."""
    try:
        app()
    except MonitoringError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None


@app.command()
def run(
    start: Annotated[
        str | None, typer.Option("--from", help="Start, such as 2026-01-01T05:00Z; default: 24 h before --to.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="End, exclusive; default: now.")] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="Run only this scorer; may be given several times.")] = None,
    config: Config = None,
) -> None:
    """Archive, measure, score and report on a range of hours. Running it again only adds what is missing."""
    settings = _settings(config)
    window = _window(settings, start, end)
    _check_scorer_names(settings, scorer)
    raise typer.Exit(_run(settings, window, scorer))


@app.command()
def demo(config: Config = None) -> None:
    """Fill an empty embedded store with the traffic of a small support agent, and run over it."""
    settings = _settings(config)
    if not settings.uses_embedded_store:
        raise SettingsError(["a store is configured, and `demo` only fills the embedded one; use `run`"])
    raise typer.Exit(_demo(settings))


@app.command(hidden=True)
def make_run(config: Config = None) -> None:
    """What `make run` does: `demo` where no store is configured, else `run` over the last 24 hours."""
    settings = _settings(config)
    window = _window(settings, None, None)
    raise typer.Exit(_demo(settings) if settings.uses_embedded_store else _run(settings, window, None))


@app.command()
def doctor(config: Config = None) -> None:
    """Check configuration, store, engine and lake, and print a checklist."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    settings = _settings(config)
    from monitoring_pipeline.doctor import examine
    from monitoring_pipeline.settings import config_path

    console.print(f"[green]ok[/]   configuration: {escape(str(config_path(config) or 'defaults'))}", soft_wrap=True)
    healthy = True
    for finding in examine(settings):
        mark = "[green]ok[/]  " if finding.healthy else "[red]FAIL[/]"
        console.print(f"{mark} {finding.subject}: {escape(finding.detail)}", soft_wrap=True)
        healthy = healthy and finding.healthy
    raise typer.Exit(0 if healthy else 1)


def _settings(config: Path | None) -> Settings:
    from monitoring_pipeline.settings import load_settings

    settings = load_settings(config)
    if config is not None:
        os.environ["MONITORING_CONFIG"] = str(config.absolute())  # for Dagster's own loading of the definitions
    return settings


def _window(settings: Settings, start: str | None, end: str | None) -> Window:
    from monitoring_pipeline.launch import hours_until_now

    try:
        latest = hours_until_now(24)
        last = parse_utc(end) if end else latest.end
        first = parse_utc(start) if start else last - 24 * HOUR
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--from/--to") from error
    last_hour = floor_hour(last) if floor_hour(last) == last else floor_hour(last) + HOUR
    window_start, window_end = floor_hour(first), min(last_hour, latest.end)
    if window_start >= window_end:
        raise typer.BadParameter(
            f"--from {first:%Y-%m-%dT%H:%MZ} is not before --to {min(last, latest.end):%Y-%m-%dT%H:%MZ}"
        )
    if window_start < settings.archive.start:
        raise typer.BadParameter(
            f"--from {first:%Y-%m-%dT%H:%MZ} is before the archive's start; set [archive] start (now"
            f" {settings.archive.start:%Y-%m-%dT%H:%MZ}) to it or earlier"
        )
    return Window(window_start, window_end)


def _check_scorer_names(settings: Settings, names: list[str] | None) -> None:
    known = [scorer.name for scorer in settings.scorers]
    for name in names or []:
        if name not in known:
            raise typer.BadParameter(f"--scorer {name}: no such scorer; configured are {', '.join(known)}")


def _demo(settings: Settings) -> int:
    from monitoring_pipeline.demo.store import filled_store

    return _run(settings, filled_store(settings.mlflow.tracking_uri, echo=typer.echo), None)


def _run(settings: Settings, window: Window, scorers: list[str] | None) -> int:
    """Check, run, and print the summary; returns the exit code."""
    from monitoring_pipeline.console import show_progress, show_summary
    from monitoring_pipeline.definitions import build_definitions
    from monitoring_pipeline.doctor import examine
    from monitoring_pipeline.launch import run_chain, start_instance, step_count

    problems = [f"{finding.subject}: {finding.detail}" for finding in examine(settings) if not finding.healthy]
    if problems:
        raise MonitoringError("\n".join(problems))
    instance = start_instance(config_folder())
    definitions = build_definitions(settings)
    with show_progress(window, step_count(definitions, settings, window, scorers)) as on_event:
        result = run_chain(definitions, settings, window, scorers, instance, on_event)
    show_summary(settings, window, result)
    return 0 if result.succeeded else 1


def config_folder() -> Path:
    """The folder of the configuration file in use, else the working folder: where data/ is kept."""
    from monitoring_pipeline.settings import config_path

    path = config_path()
    return path.parent if path else Path.cwd()


if __name__ == "__main__":
    main()
