"""Trace archival by Databricks into a Delta table of Unity Catalog."""

from __future__ import annotations

from dataclasses import dataclass

from monitoring_pipeline.databricks.agents import DATABRICKS, at_databricks, monitor_of, patiently, status_of
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.settings import Settings, in_catalog, without_password


@dataclass(frozen=True)
class TraceArchival:
    """Databricks archives the traces of the experiment to `table`; `is_new` unless it already did."""

    experiment_id: str
    table: str
    is_new: bool


def table_name(catalog: str, schema: str, table: str) -> str:
    """Return the full name of a table in Unity Catalog.

    Raises:
        MonitoringError: a part is not a plain identifier.
    """
    for part, name in {"catalog": catalog, "schema": schema, "table": table}.items():
        if not in_catalog(f"main.{name}") or "." in name:
            raise MonitoringError(f"{part} = {name!r}: must be letters, digits and _, such as agent_traces")
    return f"{catalog}.{schema}.{table}"


def check_databricks(settings: Settings) -> None:
    """Check that the MLflow store is Databricks.

    Raises:
        MonitoringError: it is another store; the message says how to archive its traces.
    """
    uri = settings.mlflow.tracking_uri
    if uri != DATABRICKS:
        raise MonitoringError(
            f"trace archival is a service of Databricks ([mlflow] tracking_uri = 'databricks'); from "
            f"{without_password(uri)} this pipeline archives traces itself, with the asset archived_traces"
        )


def start_archival(experiment_id: str, table: str) -> TraceArchival:
    """Enable archival of the experiment's traces to `table` (catalog.schema.table).

    Raises:
        MonitoringError: they are archived to another table, the request failed, or databricks-agents is missing.
    """
    from mlflow.tracing.archival import enable_databricks_trace_archival

    with at_databricks():
        try:
            patiently(lambda: enable_databricks_trace_archival(delta_table_fullname=table, experiment_id=experiment_id))
        except Exception as error:
            if status_of(error) != 409:
                raise
        else:
            return TraceArchival(experiment_id, table, is_new=True)
    present = monitor_of(experiment_id).get("trace_archive_table") or "a table that Databricks does not name"
    if present.lower() != table.lower():
        raise MonitoringError(
            f"experiment {experiment_id} is archived to {present}, not to {table}; use that table, or disable it with "
            f"mlflow.tracing.archival.disable_databricks_trace_archival(experiment_id={experiment_id!r})"
        )
    return TraceArchival(experiment_id, table, is_new=False)


def active_experiment(name: str) -> str:
    """Set MLflow's active experiment in this process, creating it if needed; returns its id.

    Raises:
        MonitoringError: the request failed, or databricks-agents is missing.
    """
    import mlflow

    with at_databricks():
        return mlflow.set_experiment(name).experiment_id
