"""Jobs: what a person launches at once.

Dagster refuses a job over assets of different partitions: the chain is hourly; agreement and report daily.
"""

from __future__ import annotations

import dagster as dg

from monitoring_pipeline.assets.performance import ARCHIVE_KEY
from monitoring_pipeline.tables import SCORER_AGREEMENT

MONITORING = "monitoring"
DAILY_REPORT = "daily_report_job"
ARCHIVE = "archive_job"
ALERTING = dg.AssetSelection.groups("alerts")  # has a job of its own, and neither hours nor days
BY_DAY = dg.AssetSelection.groups("reports") | dg.AssetSelection.assets(SCORER_AGREEMENT.name)


def jobs() -> list[dg.UnresolvedAssetJobDefinition]:
    """The whole hourly chain, from the archive to quality; its first asset alone; and what is made of it by day."""
    return [
        dg.define_asset_job(
            MONITORING,
            selection=dg.AssetSelection.all() - BY_DAY - ALERTING,
            description="Archive, performance, assessments and quality of the chosen hours.",
        ),
        dg.define_asset_job(
            ARCHIVE,
            selection=dg.AssetSelection.assets(ARCHIVE_KEY),
            description="The archive of the chosen hours alone; the sensor new_traces requests it.",
        ),
        dg.define_asset_job(DAILY_REPORT, selection=BY_DAY, description="Agreement and reports of the chosen days."),
    ]
