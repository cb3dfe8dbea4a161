"""Scorers over past hours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.api.common import window_of
from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.settings import Settings, config_folder, load_settings

if TYPE_CHECKING:
    from monitoring_pipeline.windows import Window


def backfill_historical_metrics(
    scorer_name: str,
    start_time: datetime,
    end_time: datetime,
    sample_rate: float | None = None,
    settings: Settings | None = None,
) -> None:
    """Score the archived traces of the hours from `start_time` to `end_time` that the scorer has not scored yet.

    A running Dagster daemon does the work; without one, this process does it before the function returns. `sample_rate`
    replaces the scorer's own. Traces that have a result are not scored again.

    Raises:
        MonitoringError: the settings or the scorer's name is wrong, or the run in this process failed, with the reason.
    """
    settings = settings or load_settings()
    failed = _backfill([scorer_name], window_of(settings, start_time, end_time), sample_rate, settings)
    if failed:
        raise MonitoringError("; ".join(f"{step}: {reason}" for step, reason in failed.items()))


def backfill_workflow(
    scorer_names: Sequence[str],
    start_time: datetime,
    end_time: datetime,
    batch_size_days: int = 7,
    settings: Settings | None = None,
) -> dict[str, str]:
    """Backfill several scorers in batches of days; returns the failed steps with their reasons.

    A scorer that fails does not stop the others.

    Raises:
        MonitoringError: the settings, a scorer's name or the size of the batches is wrong.
    """
    from monitoring_pipeline.windows import parts

    if batch_size_days < 1:
        raise MonitoringError(f"batch_size_days = {batch_size_days}: must be at least 1")
    settings = settings or load_settings()
    failed: dict[str, str] = {}
    for batch in parts(window_of(settings, start_time, end_time), batch_size_days * 24):
        failed |= _backfill(scorer_names, batch, None, settings)
    return failed


def _backfill(
    scorer_names: Sequence[str], window: Window, sample_rate: float | None, settings: Settings
) -> dict[str, str]:
    """Launch the backfills on a daemon, or run them here; returns the steps that failed here, with their reasons."""
    from monitoring_pipeline.orchestration.backfills import (
        ScorerOptions,
        address_of,
        daemon_is_running,
        launch_backfills,
        run_backfills,
    )
    from monitoring_pipeline.orchestration.build import build_definitions
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources

    if unknown := sorted(set(scorer_names) - {entry.name for entry in settings.scorers}):
        known = ", ".join(entry.name for entry in settings.scorers)
        raise SettingsError([f"no scorer {', '.join(unknown)}; configured are {known}"])
    instance = start_instance(config_folder(), settings.dagster.names, build_resources(settings)["lake"])
    definitions = build_definitions(settings)
    options = ScorerOptions(sample_rate)
    if not daemon_is_running(instance):
        return run_backfills(definitions, settings, window, scorer_names, options, instance, lambda event: None)
    for name, backfill_id in launch_backfills(definitions, settings, window, scorer_names, options, instance).items():
        print(f"{name}: launched; watch it at {address_of(backfill_id)}")
    return {}
