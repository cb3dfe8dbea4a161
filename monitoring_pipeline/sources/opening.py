"""Opens the source that the settings name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources.base import Source


@contextmanager
def open_source(settings: ArchiveSettings, tracking: TrackingResource, spark: SparkResource) -> Iterator[Source]:
    """Open the source that [archive] names for the experiments of `tracking`, for the duration of the `with` block.

    Raises:
        TrackingError: the store cannot be used, or lacks a named experiment.
    """
    location = settings.location or tracking.tracking_uri  # the settings require a location for delta and otel
    match settings.source:
        case "mlflow":
            from monitoring_pipeline.sources.mlflow import MlflowSource

            yield MlflowSource(tracking, tracking.experiment_names())
        case "mlflow-sql":
            from monitoring_pipeline.sources.mlflow_database import experiment_names, opened
            from monitoring_pipeline.sources.mlflow_sql import MlflowSqlSource

            with opened(location) as database:
                names = experiment_names(database, tracking.experiments)
                yield MlflowSqlSource(database, names, tracking.tracking_uri)
        case "delta":
            from monitoring_pipeline.sources.delta import DeltaSource

            yield DeltaSource(spark, location, tracking.experiment_names(), bool(tracking.experiments))
        case "otel":
            from monitoring_pipeline.sources.otel import OtelSource

            yield OtelSource(spark, location, tracking.experiment_names(), bool(tracking.experiments))
