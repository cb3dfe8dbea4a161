"""Opens the source that the settings name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources.base import Batch, HourCounts, Source
from monitoring_pipeline.windows import Window

READABLE = ("sqlite", "postgresql")  # databases that `mlflow-sql` reads


@dataclass(frozen=True)
class ReadDirectly:
    """The source `mlflow` on a database; a `Source`.

    MLflow's client counts, so that the marks of archived hours keep their meaning, and looks up the few moved traces.
    `mlflow-sql` reads, several times as fast as the client and with the same result.
    """

    counted: Source
    address: str

    @property
    def experiment_names(self) -> dict[str, str]:
        """As `Source.experiment_names`."""
        return self.counted.experiment_names

    def counts(self, window: Window) -> dict[datetime, HourCounts]:
        """As `Source.counts`."""
        return self.counted.counts(window)

    def read(self, window: Window) -> Iterator[Batch]:
        """As `Source.read`."""
        from monitoring_pipeline.sources.mlflow_database import opened
        from monitoring_pipeline.sources.mlflow_sql import MlflowSqlSource

        with opened(self.address) as database:
            yield from MlflowSqlSource(database, self.experiment_names, self.address).read(window)

    def moved(self, hours: Mapping[str, datetime]) -> Iterator[Batch]:
        """As `Source.moved`."""
        return self.counted.moved(hours)


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

            source = MlflowSource(tracking, tracking.experiment_names())
            is_readable = tracking.tracking_uri.startswith(READABLE)
            yield ReadDirectly(source, tracking.tracking_uri) if is_readable else source
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
