"""Jobs: what a person launches at once.

Two, because Dagster refuses a job over assets of different partitions: the chain is hourly, its report daily.
"""

from __future__ import annotations

import dagster as dg

MONITORING = "monitoring"
DAILY_REPORT = "daily_report_job"
REPORTS = dg.AssetSelection.groups("reports")


def jobs() -> list[dg.UnresolvedAssetJobDefinition]:
    """The whole hourly chain, from the archive to quality, and the report made of it."""
    return [
        dg.define_asset_job(
            MONITORING,
            selection=dg.AssetSelection.all() - REPORTS,
            description="Archive, performance, assessments and quality of the chosen hours.",
        ),
        dg.define_asset_job(DAILY_REPORT, selection=REPORTS, description="The reports of the chosen days."),
    ]
