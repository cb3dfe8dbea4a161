"""Options and checks that several commands share."""

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
        "--config", help="Configuration file; default: $MONITORING_CONFIG, else ./monitoring.toml if it exists."
    ),
]
Start = Annotated[
    str | None, typer.Option("--from", help="Start of the range, such as 2026-01-01T05:00Z; default: 24 h before --to.")
]
End = Annotated[str | None, typer.Option("--to", help="End of the range, exclusive; default: now.")]


def settings_of(config: Path | None) -> Settings:
    """The settings in force; child processes use the same configuration file."""
    from monitoring_pipeline.settings import load_settings

    settings = load_settings(config)
    if config is not None:
        os.environ["MONITORING_CONFIG"] = str(config.absolute())  # Dagster loads the definitions by itself
    return settings


def window_of(settings: Settings, start: str | None, end: str | None) -> Window:
    """The whole hours from --from to --to; default: the last 24 hours and the current one."""
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


def printable(text: str) -> str:
    """Return the text without characters that move a terminal's cursor, change its colours or the reading direction."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)


def shown(text: object) -> str:
    """Return the `printable` text for rich, which takes no part of it for markup."""
    from rich.markup import escape

    return escape(printable(str(text)))
