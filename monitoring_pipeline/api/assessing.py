"""Scorers run on chosen traces, whenever asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.api.common import window_of
from monitoring_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Trace
    from mlflow.genai.scorers import Scorer


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
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.on_demand import assess_chosen, chosen_scorers, chosen_traces

    settings = settings or load_settings()
    resources = build_resources(settings)
    by_time = start or end or (traces is None and trace_ids is None)
    window = window_of(settings, start, end) if by_time else None
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
