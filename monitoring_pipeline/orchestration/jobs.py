"""Asset jobs: assets that are launched together.

Dagster refuses a job over assets with different partitions. The chain is hourly, agreement and daily reports are daily,
and weekly reports are weekly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import dagster as dg

from monitoring_pipeline.keys import (
    ALERTS_GROUP,
    ARCHIVE,
    ARCHIVE_KEY,
    DAILY_REPORT,
    DATASETS,
    DATASETS_GROUP,
    MONITORING,
    NEW_TRACES,
    REPORTS_GROUP,
    WEEKLY_REPORT,
    WEEKLY_REPORT_KEY,
    WHOLE_CHAIN_TAG,
)
from monitoring_pipeline.orchestration.naming import AssetJob, executor
from monitoring_pipeline.settings import DagsterSettings, DatasetSettings
from monitoring_pipeline.tables import SCORER_AGREEMENT


def jobs(settings: DagsterSettings, datasets: Sequence[DatasetSettings]) -> list[AssetJob]:
    """The jobs of the hourly chain, its archive alone, daily and weekly reports and, if configured, datasets.

    They select only our assets, whatever else is in the code location.
    """
    names = settings.names

    def group(name: str) -> dg.AssetSelection:
        return names.ours & dg.AssetSelection.groups(names.group(name))

    of_datasets = group(DATASETS_GROUP)
    by_week = dg.AssetSelection.assets(names.key(WEEKLY_REPORT_KEY))
    by_day = (group(REPORTS_GROUP) - by_week) | dg.AssetSelection.assets(names.key(SCORER_AGREEMENT.name))
    alerting = group(ALERTS_GROUP)  # has its own job and no partitions

    job = functools.partial(asset_job, settings)
    return [
        job(
            MONITORING,
            names.ours - by_day - by_week - of_datasets - alerting,
            "Archives, measures and scores the chosen hours.",
            {WHOLE_CHAIN_TAG: "true"},
        ),
        job(
            ARCHIVE,
            dg.AssetSelection.assets(names.key(ARCHIVE_KEY)),
            f"Archives the chosen hours and nothing else; the sensor {names.definition(NEW_TRACES)} requests it.",
        ),
        job(DAILY_REPORT, by_day, "Computes agreement and writes the report of the chosen days."),
        job(WEEKLY_REPORT, by_week, "Writes the report of the chosen weeks."),
        *([job(DATASETS, of_datasets, "Builds the datasets of the chosen days.")] if datasets else []),
    ]


def asset_job(
    settings: DagsterSettings,
    name: str,
    selection: dg.AssetSelection,
    description: str,
    run_tags: Mapping[str, str] | None = None,
) -> AssetJob:
    """A job over our assets, with the name prefix and the executor of the settings."""
    return AssetJob(
        name=settings.names.definition(name),
        selection=selection,
        description=description,
        run_tags=run_tags,
        executor_def=executor(settings),
    )
