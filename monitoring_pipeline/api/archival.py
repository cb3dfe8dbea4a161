"""What is set up once: tables, scorers, and Databricks' archival of traces."""

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
    from monitoring_pipeline.lifecycle.setup import set_up

    return list(set_up(settings or load_settings()))
