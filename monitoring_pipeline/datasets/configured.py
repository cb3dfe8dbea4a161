"""Builds the configured datasets and writes them to files and MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from monitoring_pipeline.datasets.building import dataset_of_lake
from monitoring_pipeline.datasets.files import write_dataset
from monitoring_pipeline.datasets.managed import Merged, merge_into_mlflow
from monitoring_pipeline.datasets.query import query_of
from monitoring_pipeline.datasets.records import Dataset
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import DatasetSettings
from monitoring_pipeline.settings.datasets import Choice
from monitoring_pipeline.windows import Window


@dataclass(frozen=True)
class Built:
    """A dataset, its manifest and digest, and the outcome in MLflow (None if it is not added there)."""

    dataset: Dataset
    manifest: Path
    digest: str
    merged: Merged | None


def build(
    lake: LakeResource,
    tracking: TrackingResource,
    scorers: Sequence[ConfiguredScorer],
    entry: DatasetSettings,
    window: Window,
    period: str,
) -> Built:
    """Build the dataset from the traces in `window`, write its files and, if configured, add it to MLflow.

    The files go to the folder `<location>/<name>/<period>`.

    Raises:
        MonitoringError: the filter is not a valid MLflow filter, or files or MLflow cannot be written.
    """
    choice = {name: getattr(entry, name) for name in Choice.model_fields}
    dataset = dataset_of_lake(lake, query_of(window, scorers, **choice))
    written = write_dataset(dataset, Path(entry.location) / entry.name / period, entry.formats, entry.name)
    merged = merge_into_mlflow(tracking, entry.mlflow_name or entry.name, dataset) if entry.mlflow else None
    return Built(dataset, written.manifest, written.digest, merged)


def window_of_day(entry: DatasetSettings, day: date) -> Window:
    """Return the window of the dataset of `day`: the configured number of days, up to and including `day`."""
    end = datetime.combine(day, time(), UTC) + timedelta(days=1)
    return Window(end - timedelta(days=entry.days), end)
