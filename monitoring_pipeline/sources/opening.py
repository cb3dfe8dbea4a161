"""The one place where the name of a source in the settings becomes a source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources.base import Source


@contextmanager
def open_source(settings: ArchiveSettings, tracking: TrackingResource, spark: SparkResource) -> Iterator[Source]:
    """The source that [archive] names, of the experiments of `tracking`; it can be used within the `with` block.

    Raises:
        TrackingError: the store cannot be used, or has no experiment of a name.
    """
    location = settings.location or tracking.tracking_uri  # the settings require a location of delta and otel
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
