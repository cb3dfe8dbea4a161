"""The functions for notebooks and scripts, under the names that guides to monitoring use.

Times without a zone are local ones. Settings are those of monitoring.toml and the environment unless given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.settings import Settings, config_folder, load_settings

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Trace
    from mlflow.genai.scorers import Scorer

    from monitoring_pipeline.windows import Window


def assess(
    traces: Iterable[Trace] | pd.DataFrame | None = None,
    trace_ids: Sequence[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    filter: str | None = None,
    scorers: Sequence[str | Scorer] | None = None,
    experiment_name: str | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Run scorers on chosen traces, all of them, and return the results; the archive and its ledger stay as they are.

    The traces are those given (a list, or what mlflow.search_traces returns), or archived ones: those of `trace_ids`,
    or of the hours from `start` to `end` (by default the last 24) that pass the MLflow `filter`. `scorers` are names of
    configured ones or scorers themselves, by default all that are configured; each runs within its limits.

    Returns a row for each trace (or session, by its first trace) and scorer: trace_id, scorer, scorer_digest, value
    (JSON), score, rationale, error_code, error_message, source_type, assessed_at, duration_ms, input_tokens,
    output_tokens, cost_usd, session_id. With `experiment_name` they are also logged to a run of that MLflow experiment,
    made if need be: metrics <scorer>/mean, /pass_rate, /n and /errors, and the table assessments.json.

    Raises:
        MonitoringError: the settings, a scorer or the filter is wrong, or a trace is not there.
    """
    from monitoring_pipeline.assessing import assess_chosen, chosen_scorers, chosen_traces
    from monitoring_pipeline.definitions import build_resources

    settings = settings or load_settings()
    resources = build_resources(settings)
    by_time = start or end or (traces is None and trace_ids is None)
    window = _window(settings, start, end) if by_time else None
    return assess_chosen(
        resources["lake"],
        resources["tracking"],
        chosen_scorers(settings.scorers, scorers),
        chosen_traces(resources["lake"], traces, trace_ids, window, filter),
        experiment_name,
    ).results


def evaluate_production_traces(
    start_time: datetime,
    end_time: datetime,
    evaluators: Sequence[str | Scorer],
    experiment_name: str | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """`assess` of the archived traces from `start_time` to `end_time`."""
    return assess(
        start=start_time, end=end_time, scorers=evaluators, experiment_name=experiment_name, settings=settings
    )


def backfill_historical_metrics(
    scorer_name: str,
    start_time: datetime,
    end_time: datetime,
    sample_rate: float | None = None,
    settings: Settings | None = None,
) -> None:
    """Score the archived traces of the hours from `start_time` to `end_time` that the scorer has not seen.

    A Dagster daemon does it where one runs, else this process, before the function returns. `sample_rate` takes the
    place of the scorer's own. What was scored before is not scored again.

    Raises:
        MonitoringError: the settings or the scorer's name is wrong, or the run in this process failed, with the reason.
    """
    settings = settings or load_settings()
    failed = _backfill([scorer_name], _window(settings, start_time, end_time), sample_rate, settings)
    if failed:
        raise MonitoringError("; ".join(f"{step}: {reason}" for step, reason in failed.items()))


def backfill_workflow(
    scorer_names: Sequence[str],
    start_time: datetime,
    end_time: datetime,
    batch_size_days: int = 7,
    settings: Settings | None = None,
) -> dict[str, str]:
    """Backfill several scorers, in batches of days; returns what failed, and why. One that fails stops no other.

    Raises:
        MonitoringError: the settings, a scorer's name or the size of the batches is wrong.
    """
    from monitoring_pipeline.launch import parts

    if batch_size_days < 1:
        raise MonitoringError(f"batch_size_days = {batch_size_days}: must be at least 1")
    settings = settings or load_settings()
    failed: dict[str, str] = {}
    for batch in parts(_window(settings, start_time, end_time), batch_size_days * 24):
        failed |= _backfill(scorer_names, batch, None, settings)
    return failed


def _backfill(
    scorer_names: Sequence[str], window: Window, sample_rate: float | None, settings: Settings
) -> dict[str, str]:
    """Launch the backfills, or run them here; returns what failed in this process, and why."""
    from monitoring_pipeline.backfills import (
        ScorerOptions,
        address_of,
        daemon_is_running,
        launch_backfills,
        run_backfills,
    )
    from monitoring_pipeline.definitions import build_definitions
    from monitoring_pipeline.launch import start_instance

    if unknown := sorted(set(scorer_names) - {entry.name for entry in settings.scorers}):
        known = ", ".join(entry.name for entry in settings.scorers)
        raise SettingsError([f"no scorer {', '.join(unknown)}; configured are {known}"])
    instance, definitions = start_instance(config_folder()), build_definitions(settings)
    options = ScorerOptions(sample_rate)
    if not daemon_is_running(instance):
        return run_backfills(definitions, settings, window, scorer_names, options, instance, lambda event: None)
    for name, backfill_id in launch_backfills(definitions, window, scorer_names, options, instance).items():
        print(f"{name}: launched; watch it at {address_of(backfill_id)}")
    return {}


def _window(settings: Settings, start: datetime | None, end: datetime | None) -> Window:
    """The whole hours from `start` to `end`, as far as they are given."""
    from monitoring_pipeline.launch import whole_hours

    try:
        return whole_hours(settings, start.astimezone(UTC) if start else None, end.astimezone(UTC) if end else None)
    except ValueError as error:
        raise MonitoringError(str(error)) from error
