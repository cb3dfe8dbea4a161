"""One-time set-up: tables, scorers, and trace archival on Databricks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from monitoring_pipeline.databricks.archival import TraceArchival


def enable_trace_archival(
    catalog: str,
    schema: str,
    table: str = "agent_traces",
    experiment_name: str | None = None,
    settings: Settings | None = None,
) -> list[TraceArchival]:
    """Start Databricks' archival of the experiment's traces (default: of all monitored experiments).

    Returns for each experiment: experiment_id, table (catalog.schema.table), and is_new, which is False if archival was
    already on.

    Raises:
        MonitoringError: MLflow does not run on Databricks (elsewhere the pipeline archives traces itself), a name is
            invalid, the experiment is missing or archived into another table, or Databricks refuses.
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
    """Make the experiment MLflow's active one in this process and return its id; creates it if it does not exist.

    Raises:
        MonitoringError: MLflow does not run on Databricks, or Databricks refuses, e.g. for a deleted experiment.
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
    """Call `configure_trace_archival_experiment`, then `enable_trace_archival`; returns the latter's result."""
    from monitoring_pipeline.databricks.archival import table_name

    table_name(catalog, schema, table)  # refuse invalid names before creating anything
    configure_trace_archival_experiment(experiment_name, settings)
    (archival,) = enable_trace_archival(catalog, schema, table, experiment_name, settings)
    return archival


def setup(settings: Settings | None = None) -> list[str]:
    """Create everything that a run needs and that does not exist yet; returns a line for each thing created or found.

    This covers the lake's tables, the scorers in their states and, on Databricks, trace archival (if the pipeline reads
    from it) and the interval at which Databricks runs its managed scorers.

    Raises:
        MonitoringError: the settings are wrong, or something cannot be created; what was created before stays.
    """
    from monitoring_pipeline.lifecycle.setup import set_up

    return list(set_up(settings or load_settings()))
