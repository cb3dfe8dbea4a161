"""The asset that archives traces from the source into the lake."""

from typing import TYPE_CHECKING

import dagster as dg

from monitoring_pipeline.keys import ARCHIVE_KEY
from monitoring_pipeline.orchestration.assets.common import record_hours, table_asset, utc_index
from monitoring_pipeline.orchestration.checks import (
    ARCHIVE_COMPLETE,
    TRACE_IDS_UNIQUE,
    VALUES_PLAUSIBLE,
    CheckedAsset,
    archive_complete,
    checked,
    table_checks,
    trace_ids_unique,
    values_plausible,
)
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from monitoring_pipeline.archive.merging import ArchiveCounts


def archive_assets(hours: dg.TimeWindowPartitionsDefinition, source: ArchiveSettings) -> list[dg.AssetsDefinition]:
    """The asset `archived_traces`."""

    @table_asset(
        AGENT_TRACES,
        hours,
        "archive",
        key=ARCHIVE_KEY,
        checks=[TRACE_IDS_UNIQUE, ARCHIVE_COMPLETE, VALUES_PLAUSIBLE],
        kinds={"mlflow", "deltalake"},
        reads="mlflow",
        description="Every trace that the source has for the hour, merged into `agent_traces`; traces that the source "
        "has deleted since stay. Traces that cannot be read go to `quarantined_traces`, with the reason.",
    )
    def archived_traces(
        context: dg.AssetExecutionContext, tracking: TrackingResource, lake: LakeResource
    ) -> CheckedAsset:
        from monitoring_pipeline.archive.window import archive_window

        window = run_window(context, lake)
        counts = archive_window(
            source, tracking, lake, window, on_progress=lambda read: context.log.info(f"{read} traces read")
        )
        traces = lake.read(AGENT_TRACES, window)
        record_hours(context, window, utc_index(_figures(traces).toPandas(), "trace_hour"))
        for line in _report(window, counts):
            context.log.info(line)
        checks = [
            *table_checks(context.asset_key, AGENT_TRACES, traces),
            trace_ids_unique(lake, window),
            archive_complete(counts.lacking),
            values_plausible(lake, window),
        ]
        yield from checked(context, checks)

    return [archived_traces]


def _figures(traces: "DataFrame") -> "DataFrame":
    """Traces, error rate and traces in progress of each hour."""
    from pyspark.sql import functions as F

    status = traces["trace_info.status"]
    return traces.groupBy("trace_hour").agg(
        F.count("*").alias("rows"),
        F.count("*").alias("trace_count"),
        F.avg((status == "ERROR").cast("int")).alias("error_rate"),
        F.sum((status == "IN_PROGRESS").cast("int")).alias("in_progress"),
    )


def _report(window: Window, counts: "ArchiveCounts") -> list[str]:
    """Log lines with the counts of the run."""
    lines = [
        f"{window}: {counts.read} traces read, {counts.written} new or changed, {counts.quarantined} in quarantine, "
        f"{counts.moved} moved from another hour, {counts.deleted} skipped because they were deleted on request"
    ]
    if counts.redactions:
        redacted = ", ".join(f"{name} {number}" for name, number in sorted(counts.redactions.items()))
        lines.append(f"redacted from traces: {redacted}")
    return lines
