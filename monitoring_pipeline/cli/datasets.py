"""`monitoring-pipeline datasets`: build a dataset now, rebuild one, and list them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline.cli.common import Config, End, Start, settings_of, window_of
from monitoring_pipeline.errors import MonitoringError

if TYPE_CHECKING:
    from monitoring_pipeline.settings import DatasetSettings, Settings

app = typer.Typer(no_args_is_help=True, help="Build evaluation datasets from the archive.")


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Name of a configured dataset.", show_default=False)],
    start: Start = None,
    end: End = None,
    config: Config = None,
) -> None:
    """Build the dataset from the traces of a range of hours, in a separate folder."""
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
            f"MLflow dataset {built.merged.name}: {built.merged.added:,} records added, {known:,} skipped because it "
            f"has their inputs, {built.merged.records:,} in total"
        )


@app.command("list")
def list_datasets(config: Config = None) -> None:
    """Print the configured datasets and how many of each were built."""
    settings = settings_of(config)
    if not settings.datasets:
        raise MonitoringError("no datasets; add [[datasets]] to monitoring.toml")
    from monitoring_pipeline.cli.console import show_datasets

    show_datasets(settings.datasets)


@app.command()
def rebuild(
    manifest: Annotated[Path, typer.Argument(help="manifest.json of a dataset, or its folder.")],
    config: Config = None,
) -> None:
    """Build a dataset again from the same versions of the tables, and check that the result is the same."""
    settings = settings_of(config)
    from monitoring_pipeline.datasets.files import rebuild
    from monitoring_pipeline.resources.build import build_resources

    dataset = rebuild(build_resources(settings)["lake"], manifest)
    typer.echo(f"{len(dataset):,} records, the same as before")


def _entry(settings: Settings, name: str) -> DatasetSettings:
    by_name = {entry.name: entry for entry in settings.datasets}
    if name not in by_name:
        configured = ", ".join(by_name) or "none; add [[datasets]] to monitoring.toml"
        raise MonitoringError(f"{name}: no such dataset; configured are {configured}")
    return by_name[name]
