"""Daily and weekly reports."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.keys import DAILY_REPORT_KEY, WEEKLY_REPORT_KEY
from monitoring_pipeline.orchestration.assets.common import tags
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.tables import SCORER_AGREEMENT

UPSTREAM = [
    "trace_performance",
    "trace_errors",
    "hourly_performance",
    "span_profile",
    "scorer_coverage",
    "hourly_quality",
    SCORER_AGREEMENT.name,
]
CONTENT = (
    "volume, errors, latency, cost and quality, what changed, what stands out and where to look. Written as HTML, "
    "Markdown and JSON."
)


def report_assets(
    days: dg.TimeWindowPartitionsDefinition,
    weeks: dg.TimeWindowPartitionsDefinition,
    scorers: list[ConfiguredScorer],
    settings: Settings,
) -> list[dg.AssetsDefinition]:
    """The report of each day and of each week, written under `[reports] location`."""
    return [
        _report_asset(DAILY_REPORT_KEY, days, Period.day, scorers, settings, f"The day on a page: {CONTENT}"),
        _report_asset(WEEKLY_REPORT_KEY, weeks, Period.week_of, scorers, settings, f"The week on a page: {CONTENT}"),
    ]


def _report_asset(
    name: str,
    partitions: dg.TimeWindowPartitionsDefinition,
    period_of: Callable[[date], Period],
    scorers: list[ConfiguredScorer],
    settings: Settings,
    description: str,
) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        deps=UPSTREAM,
        partitions_def=partitions,
        group_name="reports",
        kinds={"html", "markdown"},
        tags=tags(None),
        code_version="2",
        backfill_policy=dg.BackfillPolicy.single_run(),
        description=description,
    )
    def report(context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource) -> None:
        for period in dict.fromkeys(map(period_of, run_window(context, lake).days())):
            metadata = _written(context, period, lake, tracking, scorers, settings)
            context.add_asset_metadata(metadata, asset_key=context.asset_key, partition_key=period.partition_key)

    return report


def _written(
    context: dg.AssetExecutionContext,
    period: Period,
    lake: LakeResource,
    tracking: TrackingResource,
    scorers: list[ConfiguredScorer],
    settings: Settings,
) -> dict[str, Any]:
    """Write the report of the period, log it to MLflow if configured, and return its metadata for Dagster."""
    from monitoring_pipeline.reports.files import HTML, JSON, MARKDOWN, write_report
    from monitoring_pipeline.reports.in_mlflow import log_report
    from monitoring_pipeline.reports.links import mlflow_ui
    from monitoring_pipeline.reports.reading import report_data
    from monitoring_pipeline.reports.rendering import render_markdown
    from monitoring_pipeline.reports.report import Report

    report = Report(report_data(lake, scorers, period, mlflow_ui(settings)))
    folder = write_report(report, Path(settings.reports.location))
    metadata: dict[str, Any] = {
        "report": dg.MetadataValue.path(folder / HTML),
        "report_markdown": dg.MetadataValue.path(folder / MARKDOWN),
        "report_json": dg.MetadataValue.path(folder / JSON),
        "preview": dg.MetadataValue.md(render_markdown(report, images=True)),
        "trace_count": int(report.data.hours["trace_count"].sum()),
    }
    context.log.info(f"report of {period.name}: {folder / HTML}")
    if settings.reports.log_to_experiment:
        try:
            metadata["mlflow_run"] = log_report(tracking, settings.reports.log_to_experiment, report, folder)
        except TrackingError as error:  # the report is written, even if MLflow refuses it
            context.log.warning(f"the report of {period.name} was not logged to MLflow: {error}")
            metadata["mlflow_warning"] = f"not logged: {error}"
    return metadata
