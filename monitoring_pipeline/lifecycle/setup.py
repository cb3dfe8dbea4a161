"""Creates what the settings describe: tables, trace archival, registered scorers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitoring_pipeline.lifecycle.scorer_handles import ScorerHandle
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.tracking import TrackingResource
    from monitoring_pipeline.settings import Settings


def set_up(settings: Settings) -> Iterator[str]:
    """Create everything step by step; yields a line for each thing created or found.

    Raises:
        MonitoringError: the settings are invalid, or something cannot be created; earlier steps stay done.
    """
    from monitoring_pipeline.resources.build import build_resources

    resources = build_resources(settings)
    yield from _tables(resources["lake"])
    yield from _archival(settings, resources["tracking"])
    yield from _scorers(settings)
    yield from _frequency(settings, resources["tracking"])


def _tables(lake: LakeResource) -> Iterator[str]:
    from monitoring_pipeline.tables import TABLES

    for table in TABLES:
        yield f"table {table.name}: at version {lake.version(table)}"


def _archival(settings: Settings, tracking: TrackingResource) -> Iterator[str]:
    from monitoring_pipeline.databricks.archival import DATABRICKS, start_archival, table_name

    if not settings.archive.reads_databricks_archive or settings.mlflow.tracking_uri != DATABRICKS:
        return
    table = table_name(*_parts(settings.archive.location or ""))
    for experiment_id, name in tracking.experiment_names().items():
        archival = start_archival(experiment_id, table)
        yield f"archival of experiment {name}: {'started' if archival.is_new else 'already started'}, into {table}"


def _parts(location: str) -> list[str]:
    from monitoring_pipeline.errors import SettingsError

    parts = location.split(".")
    if len(parts) != 3:
        raise SettingsError([f"archive.location = {location!r}: Databricks archives into catalog.schema.table"])
    return parts


def _scorers(settings: Settings) -> Iterator[str]:
    from monitoring_pipeline import lifecycle
    from monitoring_pipeline.lifecycle import plan

    changes = plan.plan(settings)
    for change, handle in zip(changes, plan.apply(changes), strict=True):
        note = f"; not registered in MLflow: {handle.note}" if handle.note else ""
        yield f"scorer {handle.name}: {change.action}d, {_standing(handle)}{note}"
    changed = {change.handle.name for change in changes}
    for handle in lifecycle.handles(settings):
        if handle.name not in changed:
            yield f"scorer {handle.name}: unchanged, {_standing(handle)}"


def _standing(handle: ScorerHandle) -> str:
    return f"{handle.state} at rate {handle.sample_rate:.4g}{', run by Databricks' if handle.managed else ''}"


def _frequency(settings: Settings, tracking: TrackingResource) -> Iterator[str]:
    from monitoring_pipeline.databricks.managed import run_every

    if not any(entry.managed for entry in settings.scorers):
        return
    minutes = settings.databricks.monitoring_frequency_minutes
    for experiment_id, name in tracking.experiment_names().items():
        run_every(experiment_id, minutes)
        yield f"scorers of experiment {name}: run every {minutes} minutes"
