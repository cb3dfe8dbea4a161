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

    from monitoring_pipeline.databricks.archival import TraceArchival
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


def enable_trace_archival(
    catalog: str,
    schema: str,
    table: str = "agent_traces",
    experiment_name: str | None = None,
    settings: Settings | None = None,
) -> list[TraceArchival]:
    """Have Databricks archive the traces of the experiment, by default of all monitored ones, from now on.

    Returns what holds for each: experiment_id, table (catalog.schema.table), and is_new, False where it was so before.

    Raises:
        MonitoringError: MLflow is not Databricks' (there the pipeline archives by itself), a name is none, the
            experiment is missing or archived in another table, or Databricks refuses.
    """
    from monitoring_pipeline.databricks.archival import check_databricks, start_archival, table_name
    from monitoring_pipeline.resources.tracking import TrackingResource

    settings = settings or load_settings()
    check_databricks(settings)
    full_name = table_name(catalog, schema, table)
    experiments = settings.mlflow.experiments if experiment_name is None else [experiment_name]
    tracking = TrackingResource(tracking_uri=settings.mlflow.tracking_uri, experiments=experiments)
    return [start_archival(experiment_id, full_name) for experiment_id in tracking.experiment_names()]


def configure_trace_archival_experiment(experiment_name: str, settings: Settings | None = None) -> str:
    """Make the experiment MLflow's active one, to which this process logs from now on; returns its id.

    It is made if need be.

    Raises:
        MonitoringError: MLflow is not Databricks', or Databricks refuses, as where the experiment is deleted.
    """
    from monitoring_pipeline.databricks.archival import active_experiment, check_databricks

    check_databricks(settings or load_settings())
    return active_experiment(experiment_name)


def setup_trace_archival(
    catalog: str,
    schema: str,
    table: str,
    experiment_name: str,
    settings: Settings | None = None,
) -> TraceArchival:
    """`configure_trace_archival_experiment`, and then `enable_trace_archival` for it; returns what the latter does."""
    from monitoring_pipeline.databricks.archival import table_name

    table_name(catalog, schema, table)  # refused before anything is made
    configure_trace_archival_experiment(experiment_name, settings)
    (archival,) = enable_trace_archival(catalog, schema, table, experiment_name, settings)
    return archival


def setup(settings: Settings | None = None) -> list[str]:
    """Make everything that a run needs and that is not there yet; returns a line for each thing made or found.

    These are the tables of the lake, the scorers in their state and, at Databricks, the archival of traces (where they
    are read from it) and how often it runs the scorers that it manages.

    Raises:
        MonitoringError: the settings are wrong, or something cannot be made; what was made before stays.
    """
    from monitoring_pipeline.commands.setup import set_up

    return list(set_up(settings or load_settings()))


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
