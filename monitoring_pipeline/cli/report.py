"""`monitoring-pipeline report`: the report of a day or a week."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring_pipeline.cli.common import Config, settings_of

if TYPE_CHECKING:
    from monitoring_pipeline.reports.period import Period
    from monitoring_pipeline.settings import Settings


def report(
    day: Annotated[str | None, typer.Option(help="Day of the report, such as 2026-01-14; default: yesterday.")] = None,
    week: Annotated[str | None, typer.Option(help="Report on the week (Monday to Sunday) of this day instead.")] = None,
    config: Config = None,
) -> None:
    """Write the report of a day or a week (UTC) from the lake, and print its path."""
    settings = settings_of(config)
    period = _period(settings, day, week)
    from monitoring_pipeline.errors import MonitoringError
    from monitoring_pipeline.keys import DAILY_REPORT, WEEKLY_REPORT
    from monitoring_pipeline.orchestration.build import build_definitions
    from monitoring_pipeline.orchestration.runs import execute, failures, start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.settings import config_folder

    names = settings.dagster.names
    result = execute(
        build_definitions(settings),
        names,
        names.definition(DAILY_REPORT if period.kind == "day" else WEEKLY_REPORT),
        None,
        (period.partition_key, period.partition_key),
        start_instance(config_folder(), names, build_resources(settings)["lake"]),
        lambda event: None,
    )
    if not result.success:
        raise MonitoringError("\n".join(f"{step}: {reason}" for step, reason in failures(result).items()))
    typer.echo(Path(settings.reports.location) / period.name / "report.html")


def _period(settings: Settings, day: str | None, week: str | None) -> Period:
    from monitoring_pipeline.reports.period import Period

    if day and week:
        raise typer.BadParameter("give either --day or --week")
    given, option = (week, "--week") if week else (day, "--day")
    now = datetime.now(UTC)
    try:
        chosen = date.fromisoformat(given) if given else now.date() - timedelta(days=1)
    except ValueError:
        raise typer.BadParameter(f"{given!r} is not a date: write it as 2026-01-14", param_hint=option) from None
    period = Period.week_of(chosen) if week else Period.day(chosen)
    if period.window.end <= settings.archive.start:
        start = f"{settings.archive.start:%Y-%m-%d}"
        raise typer.BadParameter(f"{chosen} is before the archive, which starts on {start}", param_hint=option)
    if period.window.start > now:
        raise typer.BadParameter(f"{chosen} is in the future", param_hint=option)
    return period
