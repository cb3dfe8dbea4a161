"""Scorers on chosen traces, on demand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.api.common import renamed, window_of
from monitoring_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Trace
    from mlflow.genai.scorers import Scorer


@renamed(start="start_time", end="end_time", filter="filter_string")
def assess(
    traces: Iterable[Trace] | pd.DataFrame | None = None,
    trace_ids: Sequence[str] | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    scorers: Sequence[str | Scorer] | None = None,
    experiment_name: str | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Run scorers on all of the chosen traces and return the results; the archive and its ledger do not change.

    Pass `traces` (a list, or what mlflow.search_traces returns), or choose archived ones: by `trace_ids`, or by the
    hours from `start_time` to `end_time` (default: the last 24) and the MLflow filter. `scorers` are names of
    configured scorers or scorer objects (default: all configured ones); each runs within its limits.

    Returns a row for each trace (or session, by its first trace) and scorer: trace_id, scorer, scorer_digest, value
    (JSON), score, rationale, error_code, error_message, source_type, assessed_at, duration_ms, input_tokens,
    output_tokens, cost_usd, session_id. With `experiment_name` they are also logged to a run of that MLflow experiment,
    which is created if it does not exist: metrics <scorer>/mean, /pass_rate, /n and /errors, and the table
    assessments.json.

    Raises:
        MonitoringError: the settings, a scorer or the filter is wrong, or a trace is not in the archive.
    """
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.on_demand import assess_chosen, chosen_scorers, chosen_traces

    settings = settings or load_settings()
    resources = build_resources(settings)
    by_time = start_time or end_time or (traces is None and trace_ids is None)
    window = window_of(settings, start_time, end_time) if by_time else None
    return assess_chosen(
        resources["lake"],
        resources["tracking"],
        chosen_scorers(settings.scorers, scorers),
        chosen_traces(resources["lake"], traces, trace_ids, window, filter_string),
        experiment_name,
    ).results


@renamed(evaluators="scorers")
def evaluate_production_traces(
    start_time: datetime,
    end_time: datetime,
    scorers: Sequence[str | Scorer],
    experiment_name: str | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """`assess` of the archived traces from `start_time` to `end_time`."""
    return assess(None, None, start_time, end_time, None, scorers, experiment_name, settings)
