"""Builds the Dagster resources from the settings."""

from __future__ import annotations

from typing import Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import Settings


def build_resources(settings: Settings) -> dict[str, Any]:
    """Return the resources `tracking`, `spark` and `lake` for `settings`."""
    spark = SparkResource(remote=settings.spark.remote)
    return {
        "tracking": TrackingResource(
            tracking_uri=settings.mlflow.tracking_uri, experiments=settings.mlflow.experiments
        ),
        "spark": spark,
        "lake": LakeResource(
            location=settings.lake.location, spark=spark, keep_archive_days=settings.upkeep.keep_archive_days
        ),
    }
