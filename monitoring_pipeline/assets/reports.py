"""The daily report."""

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from monitoring_pipeline.analysis.agreement import is_current
from monitoring_pipeline.analysis.quality import quality
from monitoring_pipeline.assets.common import tags
from monitoring_pipeline.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer, pass_rules
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
)
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

    from monitoring_pipeline.reports.daily import DailyReportData

SLOWEST_TRACES = 10
ERROR_ROWS = 5000
UPSTREAM = [
    "trace_performance",
    "trace_errors",
    "hourly_performance",
    "scorer_coverage",
    "hourly_quality",
    SCORER_AGREEMENT.name,
]


def report_assets(
    days: dg.TimeWindowPartitionsDefinition, scorers: list[ConfiguredScorer], folder: Path
) -> list[dg.AssetsDefinition]:
    """The report of each day, written under `folder`."""

    @dg.asset(
        deps=UPSTREAM,
        partitions_def=days,
        group_name="reports",
        kinds={"html", "markdown"},
        tags=tags(None),
        code_version="1",
        backfill_policy=dg.BackfillPolicy.single_run(),
        description="The day on a page: volume, errors, latency and quality by hour, what stands out, the slowest "
        "traces and the most frequent errors. One HTML file without links to anywhere, and the same as Markdown.",
    )
    def daily_report(context: dg.AssetExecutionContext, lake: LakeResource) -> None:
        from monitoring_pipeline.reports.daily import render_markdown, write_daily_report

        window = run_window(context)
        for day in window.days():
            data = report_data(lake, scorers, day)
            html, markdown = write_daily_report(data, folder)
            context.add_asset_metadata(
                {
                    "report": dg.MetadataValue.path(html),
                    "report_markdown": dg.MetadataValue.path(markdown),
                    "preview": dg.MetadataValue.md(render_markdown(data, images=True)),
                    "trace_count": int(data.performance.query("trace_name.isnull()")["trace_count"].sum()),
                },
                asset_key=context.asset_key,
                partition_key=f"{day:%Y-%m-%d}",
            )
            context.log.info(f"report of {day}: {html}")

    return [daily_report]


def report_data(lake: LakeResource, scorers: list[ConfiguredScorer], day: date) -> "DailyReportData":
    """All that the report of `day` shows, read from the lake; of the scorers only their current digests."""
    from pyspark.sql import functions as F

    from monitoring_pipeline.reports.daily import AGREEMENT_DAYS, DailyReportData

    midnight = datetime.combine(day, time(), UTC)
    window = Window(midnight, midnight + timedelta(days=1))
    trailing = Window(window.end - timedelta(days=AGREEMENT_DAYS), window.end)

    def current(rows: "DataFrame") -> "DataFrame":
        return rows.where(is_current(scorers))

    coverage = current(lake.read(SCORER_COVERAGE, window))
    traces = lake.read(TRACE_PERFORMANCE, window)
    slowest = traces.where(F.col("duration_ms").isNotNull()).orderBy(F.desc("duration_ms"), "trace_id")
    names = lake.read(AGENT_TRACES, window).select("experiment_id", "experiment_name").distinct().toPandas()
    return DailyReportData(
        day=day,
        performance=_frame(lake.read(HOURLY_PERFORMANCE, window), "hour"),
        quality=_frame(current(lake.read(HOURLY_QUALITY, window)), "hour"),
        daily_quality=quality(current(lake.read(ASSESSMENTS, window)), coverage, pass_rules(scorers), by_hour=False),
        coverage=_frame(coverage, "hour"),
        slowest=_frame(slowest.limit(SLOWEST_TRACES), "trace_hour"),
        errors=_frame(
            lake.read(TRACE_ERRORS, window).orderBy("timestamp").limit(ERROR_ROWS), "trace_hour", "timestamp"
        ),
        agreement=_frame(current(lake.read(SCORER_AGREEMENT, trailing)), "day"),
        experiment_names=dict(zip(names["experiment_id"], names["experiment_name"].fillna(""), strict=True)),
        day_percentiles=_percentiles(traces),
    )


def _percentiles(traces: "DataFrame") -> dict[str, float] | None:
    from pyspark.sql import functions as F

    quantiles = F.percentile("duration_ms", F.array(F.lit(0.5), F.lit(0.95), F.lit(0.99)))
    values = traces.agg(quantiles.alias("values")).toPandas()["values"][0]
    return dict(zip(("p50", "p95", "p99"), map(float, values), strict=True)) if values is not None else None


def _frame(rows: "DataFrame", *times: str) -> "pd.DataFrame":
    """`rows` in pandas, with the columns `times` as UTC times (Spark gives them without their zone)."""
    import pandas as pd

    frame = rows.toPandas()
    return frame.assign(**{column: pd.to_datetime(frame[column], utc=True) for column in times})
