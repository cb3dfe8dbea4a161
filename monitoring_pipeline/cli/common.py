"""What the commands share: the configuration option, and windows and names as they are typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline.windows import Window, parse_utc

if TYPE_CHECKING:
    from monitoring_pipeline.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Configuration file; else MONITORING_CONFIG, else ./monitoring.toml where it exists."
    ),
]


def settings_of(config: Path | None) -> Settings:
    """The settings in force, which whatever this process starts will find as well."""
    from monitoring_pipeline.settings import load_settings

    settings = load_settings(config)
    if config is not None:
        os.environ["MONITORING_CONFIG"] = str(config.absolute())  # for Dagster's own loading of the definitions
    return settings


def window_of(settings: Settings, start: str | None, end: str | None) -> Window:
    """The whole hours from --from to --to, as they are typed; without them the last 24 and the current one."""
    from monitoring_pipeline.settings.hours import whole_hours

    try:
        return whole_hours(settings, parse_utc(start) if start else None, parse_utc(end) if end else None)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--from/--to") from error


def check_scorer_names(settings: Settings, names: list[str] | None) -> None:
    """Refuse a --scorer that is not configured."""
    known = [scorer.name for scorer in settings.scorers]
    for name in names or []:
        if name not in known:
            raise typer.BadParameter(f"--scorer {name}: no such scorer; configured are {', '.join(known)}")
