"""`monitoring-pipeline assess`: scorers on chosen traces, also as a quality gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monitoring_pipeline.cli.common import Config, End, Start, check_scorer_names, settings_of, window_of


def assess(
    start: Start = None,
    end: End = None,
    filter: Annotated[str | None, typer.Option(help="MLflow trace filter, such as \"status = 'ERROR'\".")] = None,
    trace_id: Annotated[list[str] | None, typer.Option(help="Only this trace; repeatable.")] = None,
    scorer: Annotated[list[str] | None, typer.Option(help="Only this scorer; repeatable.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Also log a run to this MLflow experiment.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SCORE: exit with code 1 if the scorer's mean is below it; repeatable."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the results to this CSV file.")] = None,
    config: Config = None,
) -> None:
    """Run scorers on all of the chosen archived traces and print the figures; the lake does not change."""
    settings = settings_of(config)
    check_scorer_names(settings, scorer)
    thresholds = dict(_threshold(text) for text in fail_under or [])
    if output and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"--output {output}: folder {output.parent} does not exist")
    window = None if trace_id and not (start or end) else window_of(settings, start, end)
    from monitoring_pipeline.cli.console import show_outcomes
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.on_demand import (
        assess_chosen,
        check_thresholds,
        chosen_scorers,
        chosen_traces,
        shortfalls,
    )
    from monitoring_pipeline.text import cell

    resources = build_resources(settings)
    scorers = chosen_scorers(settings.scorers, scorer)
    check_thresholds(thresholds, scorers)
    traces = chosen_traces(resources["lake"], None, trace_id, window, filter)
    assessed = assess_chosen(resources["lake"], resources["tracking"], scorers, traces, experiment)
    if output:
        cells = assessed.results.map(lambda value: cell(value) if isinstance(value, str) else value)
        cells.to_csv(output, index=False, errors="backslashreplace")
    short = shortfalls(assessed.outcomes, thresholds)
    show_outcomes(len(traces), assessed, short)
    raise typer.Exit(1 if short else 0)


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise typer.BadParameter(f"--fail-under {text}: write it as response_quality=0.8") from None
