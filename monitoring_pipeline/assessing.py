"""Assessment on demand: scorers on chosen traces, as a table and, if asked for, as a run of an MLflow experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd
from mlflow.entities import Trace
from mlflow.genai.scorers import Scorer

from monitoring_pipeline.archive.given import MlflowTraces, mlflow_traces
from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.on_demand import Outcome, archived_traces, assess_traces, outcomes
from monitoring_pipeline.scoring.registry import ConfiguredScorer, configured, load_scorers
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.traces.filters import parse_filter
from monitoring_pipeline.windows import Window

RESULTS_FILE = "assessments.json"


@dataclass(frozen=True)
class Assessed:
    """The results (columns of `scoring.on_demand.COLUMNS`), their figures, and the MLflow run that has them."""

    results: pd.DataFrame
    outcomes: list[Outcome]
    run_id: str | None = None


def chosen_scorers(
    settings: Sequence[ScorerSettings], scorers: Sequence[str | Scorer] | None
) -> list[ConfiguredScorer]:
    """The configured scorers of the given names, and the given scorers themselves; all configured ones without any.

    Raises:
        SettingsError: no scorer of a name is configured, it cannot be loaded, or two have one name.
    """
    known = {entry.name: entry for entry in settings}
    wanted = list(known) if scorers is None else scorers
    names = [item if isinstance(item, str) else item.name for item in wanted]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError([f"more than one scorer is named {', '.join(repeated)}; give each once, by its own name"])
    unknown = [name for name in wanted if isinstance(name, str) and name not in known]
    if unknown:
        raise SettingsError([f"no scorer {', '.join(map(repr, unknown))}; configured are {', '.join(known)}"])
    loaded = {scorer.name: scorer for scorer in load_scorers([known[name] for name in wanted if isinstance(name, str)])}
    return [loaded[item] if isinstance(item, str) else configured(item) for item in wanted]


def chosen_traces(
    lake: LakeResource,
    traces: MlflowTraces | None,
    trace_ids: Sequence[str] | None,
    window: Window | None,
    filter: str | None,
) -> list[Trace]:
    """`traces` (a list, or a table as mlflow.search_traces returns it), else archived ones of `window`.

    Raises:
        MonitoringError: both are given, the filter is none of MLflow's, or a trace is not there.
    """
    if traces is None:
        try:
            parse_filter(filter) if filter else None
        except ValueError as error:
            raise MonitoringError(str(error)) from error
        return archived_traces(lake, window, filter, trace_ids)
    if trace_ids is not None or window is not None or filter:
        raise MonitoringError("give either traces, or trace_ids, start, end and filter of archived ones")
    return mlflow_traces(traces)


def assess_chosen(
    lake: LakeResource,
    tracking: TrackingResource,
    scorers: Sequence[ConfiguredScorer],
    traces: Sequence[Trace],
    experiment_name: str | None,
) -> Assessed:
    """Run the scorers on the traces; with an experiment also log figures and results to a run of it.

    Raises:
        TrackingError: the store or the experiment cannot be used; known before a scorer runs.
    """
    experiment_id = tracking.experiment_id(experiment_name) if experiment_name else None
    results = assess_traces(lake, scorers, traces)
    figures = outcomes(results, scorers)
    run_id = _log_run(tracking, experiment_id, scorers, results, figures) if experiment_id else None
    return Assessed(results, figures, run_id)


def check_thresholds(fail_under: Mapping[str, float], scorers: Sequence[ConfiguredScorer]) -> None:
    """Refuse thresholds that nothing can be held against, before a scorer has cost anything.

    Raises:
        SettingsError: one is no number, or for a scorer that does not run.
    """
    names = [scorer.name for scorer in scorers]
    if unknown := sorted(set(fail_under) - set(names)):
        raise SettingsError([f"fail-under names {', '.join(unknown)}, but only {', '.join(names)} runs"])
    if unusable := [name for name, threshold in fail_under.items() if not math.isfinite(threshold)]:
        raise SettingsError([f"fail-under of {', '.join(unusable)} is no number that a score can be held against"])


def shortfalls(figures: Sequence[Outcome], fail_under: Mapping[str, float]) -> list[str]:
    """What is under its threshold: a line for each scorer of `fail_under` whose mean score is, or that has no score."""
    by_name = {outcome.scorer: outcome for outcome in figures}
    lines = []
    for name, threshold in fail_under.items():
        mean = by_name[name].mean
        if mean is None:
            lines.append(f"{name}: no score to hold against {threshold:g}")
        elif mean < threshold:
            lines.append(f"{name}: mean score {mean:.4f} is under {threshold:g}")
    return lines


def _log_run(
    tracking: TrackingResource,
    experiment_id: str,
    scorers: Sequence[ConfiguredScorer],
    results: pd.DataFrame,
    figures: Sequence[Outcome],
) -> str:
    with tracking.calls() as client:
        run_id = client.create_run(experiment_id, run_name=f"assess {datetime.now(UTC):%Y-%m-%d %H:%M}").info.run_id
        for scorer in scorers:
            client.log_param(run_id, f"{scorer.name}/digest", scorer.digest)
        for outcome in figures:
            values = {"mean": outcome.mean, "pass_rate": outcome.pass_rate, "n": outcome.n, "errors": outcome.errors}
            for metric, value in values.items():
                if value is not None:
                    client.log_metric(run_id, f"{outcome.scorer}/{metric}", value)
        client.log_table(run_id, results.astype({"assessed_at": str}), RESULTS_FILE)
        client.set_terminated(run_id)
    return run_id
