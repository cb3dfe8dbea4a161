"""Jobs: what a person launches at once.

Dagster refuses a job over assets of different partitions: the chain is hourly; agreement and reports daily, and
reports weekly.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from monitoring_pipeline.keys import (
    ARCHIVE,
    ARCHIVE_KEY,
    DAILY_REPORT,
    DATASETS,
    MONITORING,
    WEEKLY_REPORT,
    WEEKLY_REPORT_KEY,
)
from monitoring_pipeline.settings import DatasetSettings
from monitoring_pipeline.tables import SCORER_AGREEMENT

OF_DATASETS = dg.AssetSelection.groups("datasets")
ALERTING = dg.AssetSelection.groups("alerts")  # has a job of its own, and neither hours nor days
BY_WEEK = dg.AssetSelection.assets(WEEKLY_REPORT_KEY)
BY_DAY = (dg.AssetSelection.groups("reports") - BY_WEEK) | dg.AssetSelection.assets(SCORER_AGREEMENT.name)


def jobs() -> list[dg.UnresolvedAssetJobDefinition]:
    """The whole hourly chain, from the archive to quality; its first asset alone; what is made of it by day or week."""
    return [
        dg.define_asset_job(
            MONITORING,
            selection=dg.AssetSelection.all() - BY_DAY - BY_WEEK - OF_DATASETS - ALERTING,
            description="Archive, performance, assessments and quality of the chosen hours.",
        ),
        dg.define_asset_job(
            ARCHIVE,
            selection=dg.AssetSelection.assets(ARCHIVE_KEY),
            description="The archive of the chosen hours alone; the sensor new_traces requests it.",
        ),
        dg.define_asset_job(DAILY_REPORT, selection=BY_DAY, description="Agreement and reports of the chosen days."),
        dg.define_asset_job(WEEKLY_REPORT, selection=BY_WEEK, description="Reports of the chosen weeks."),
    ]


def dataset_jobs(datasets: Sequence[DatasetSettings]) -> list[dg.UnresolvedAssetJobDefinition]:
    """The datasets of the chosen days; none where none are configured."""
    if not datasets:
        return []
    return [dg.define_asset_job(DATASETS, selection=OF_DATASETS, description="The datasets of the chosen days.")]
