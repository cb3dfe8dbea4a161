"""Deletes traces in MLflow, where the archive got them from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow.compute as pc

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings, without_password
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.upkeep.sqlite_files import erase_free_pages
from monitoring_pipeline.windows import Window

TRACES_PER_REQUEST = 100
SQLITE = "sqlite:///"


def check_deletable(archive: ArchiveSettings, tracking: TrackingResource) -> None:
    """Raise MonitoringError if MLflow's client cannot delete the traces that the source reads."""
    if archive.source in ("delta", "otel"):
        raise MonitoringError(
            f"--source: [archive] source is {archive.source!r}, whose tables other programs write and MLflow cannot "
            "delete from; delete the traces there, and run the command without --source"
        )
    if archive.location and archive.location != tracking.tracking_uri:
        raise MonitoringError(
            f"--source: [archive] location {without_password(archive.location)} is not [mlflow] tracking_uri "
            f"{without_password(tracking.tracking_uri)}, through which traces are deleted; make them the same, or run "
            "the command without --source"
        )


def delete_at_source(
    lake: LakeResource, tracking: TrackingResource, by_window: Mapping[Window, Collection[str]]
) -> int:
    """Delete the traces with these ids (by the window that they start in) in MLflow; returns how many it had.

    Traces that the archive could not read are looked for in every monitored experiment.

    Raises:
        TrackingError: MLflow cannot be reached, or rejects the request.
    """
    by_experiment: defaultdict[str, set[str]] = defaultdict(set)
    for window, ids in by_window.items():
        rows = lake.read_columns(AGENT_TRACES, window, "trace_id", "experiment_id").filter(
            pc.field("trace_id").isin([*ids])
        )
        known = {row["trace_id"]: row["experiment_id"] for row in rows.to_pylist() if row["experiment_id"]}
        for trace_id, experiment_id in known.items():
            by_experiment[experiment_id].add(trace_id)
        if unknown := set(ids) - set(known):
            for experiment_id in tracking.experiment_names():
                by_experiment[experiment_id] |= unknown
    deleted = 0
    with tracking.calls() as client:
        for experiment_id, ids in by_experiment.items():
            ordered = sorted(ids)
            for first in range(0, len(ordered), TRACES_PER_REQUEST):
                deleted += client.delete_traces(experiment_id, trace_ids=ordered[first : first + TRACES_PER_REQUEST])
    return deleted


def withdraw(tracking: TrackingResource, feedback: Mapping[str, str]) -> None:
    """Delete feedback (assessment id -> trace id) in MLflow, as far as it is there.

    Raises:
        TrackingError: MLflow cannot be reached, or rejects the request.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    with tracking.calls():
        for assessment_id, trace_id in feedback.items():
            try:
                tracking.client.delete_assessment(trace_id, assessment_id)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    raise


def database_file(tracking: TrackingResource) -> Path | None:
    """Return the file of MLflow's database, if it is SQLite on this machine."""
    uri = tracking.tracking_uri
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def erase_deleted_rows(tracking: TrackingResource) -> None:
    """Remove the bytes of deleted rows from MLflow's database, if it is SQLite on this machine.

    Raises:
        MonitoringError: the database is busy.
    """
    if file := database_file(tracking):
        erase_free_pages(file)
