"""What the commands share: the configuration option, and windows and names as they are typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline.windows import HOUR, Window, floor_hour, parse_utc

if TYPE_CHECKING:
    from monitoring_pipeline.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Configuration file; else MONITORING_CONFIG, else ./monitoring.toml where it exists."
    ),
]


def settings_of(config: Path | None) -> Settings:
    from monitoring_pipeline.settings import load_settings

    settings = load_settings(config)
    if config is not None:
        os.environ["MONITORING_CONFIG"] = str(config.absolute())  # for Dagster's own loading of the definitions
    return settings


def window_of(settings: Settings, start: str | None, end: str | None) -> Window:
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


def check_scorer_names(settings: Settings, names: list[str] | None) -> None:
    known = [scorer.name for scorer in settings.scorers]
    for name in names or []:
        if name not in known:
            raise typer.BadParameter(f"--scorer {name}: no such scorer; configured are {', '.join(known)}")


def config_folder() -> Path:
    """The folder of the configuration file in use, else the working folder: where data/ is kept."""
    from monitoring_pipeline.settings import config_path

    path = config_path()
    return path.parent if path else Path.cwd()
