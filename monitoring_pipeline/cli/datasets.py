"""`monitoring-pipeline datasets`: make a dataset now, make one again, and see what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline.cli.common import Config, settings_of, window_of
from monitoring_pipeline.errors import MonitoringError

if TYPE_CHECKING:
    from monitoring_pipeline.settings import DatasetSettings, Settings

app = typer.Typer(no_args_is_help=True, help="Datasets for evaluation, made of the archive.")


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Name of a configured dataset.", show_default=False)],
    start: Annotated[
        str | None, typer.Option("--from", help="Start, such as 2026-01-01T05:00Z; default: 24 h before --to.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="End, exclusive; default: now.")] = None,
    config: Config = None,
) -> None:
    """Make the dataset of the traces of a range of hours, in a folder of its own."""
    settings = settings_of(config)
    entry = _entry(settings, name)
    window = window_of(settings, start, end)
    from monitoring_pipeline.datasets.configured import build
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.registry import load_scorers

    resources = build_resources(settings)
    scorers = load_scorers([scorer for scorer in settings.scorers if scorer.name == entry.scorer])
    period = f"{window.start:%Y-%m-%dT%H}--{window.end:%Y-%m-%dT%H}"
    built = build(resources["lake"], resources["tracking"], scorers, entry, window, period)
    typer.echo(f"{len(built.dataset):,} records: {built.manifest}")
    if built.merged:
        known = len(built.dataset) - built.merged.added
        typer.echo(
            f"MLflow dataset {built.merged.name}: {built.merged.added:,} added, {known:,} left out as it has their "
            f"inputs, {built.merged.records:,} now"
        )


@app.command("list")
def list_datasets(config: Config = None) -> None:
    """Print the configured datasets, and how many of each were made."""
    settings = settings_of(config)
    if not settings.datasets:
        raise MonitoringError("no datasets: add [[datasets]] to monitoring.toml")
    from monitoring_pipeline.cli.console import show_datasets

    show_datasets(settings.datasets)


@app.command()
def rebuild(
    manifest: Annotated[Path, typer.Argument(help="The manifest.json of a dataset, or its folder.")],
    config: Config = None,
) -> None:
    """Make a dataset again, of the versions of the tables that it was made of, and check that it is the same."""
    settings = settings_of(config)
    from monitoring_pipeline.datasets.files import rebuild
    from monitoring_pipeline.resources.build import build_resources

    dataset = rebuild(build_resources(settings)["lake"], manifest)
    typer.echo(f"{len(dataset):,} records, the same as before")


def _entry(settings: Settings, name: str) -> DatasetSettings:
    by_name = {entry.name: entry for entry in settings.datasets}
    if name not in by_name:
        there = ", ".join(by_name) or "none; add [[datasets]] to monitoring.toml"
        raise MonitoringError(f"{name}: no such dataset; configured are {there}")
    return by_name[name]
