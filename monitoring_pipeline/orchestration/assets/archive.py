"""Traces from MLflow into the lake."""

import dagster as dg

from monitoring_pipeline.keys import ARCHIVE_KEY
from monitoring_pipeline.orchestration.assets.common import record_hours, table_metadata, tags, utc_index
from monitoring_pipeline.orchestration.checks import (
    ARCHIVE_COMPLETE,
    TRACE_IDS_UNIQUE,
    CheckedAsset,
    archive_complete,
    checked,
    table_check_specs,
    table_checks,
    trace_ids_unique,
)
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.tables import AGENT_TRACES


def archive_assets(hours: dg.TimeWindowPartitionsDefinition, source: ArchiveSettings) -> list[dg.AssetsDefinition]:
    """The archive itself."""

    @dg.asset(
        partitions_def=hours,
        group_name="archive",
        kinds={"mlflow", "deltalake"},
        code_version="1",
        backfill_policy=dg.BackfillPolicy.single_run(),
        tags=tags(AGENT_TRACES, reads="mlflow"),
        metadata=table_metadata(AGENT_TRACES),
        check_specs=[*table_check_specs(ARCHIVE_KEY, AGENT_TRACES), TRACE_IDS_UNIQUE, ARCHIVE_COMPLETE],
        description="Every trace that the source has for the hour, merged into `agent_traces`; what it has since "
        "deleted stays. Traces that cannot be read go to `quarantined_traces`, with the reason.",
    )
    def archived_traces(
        context: dg.AssetExecutionContext, tracking: TrackingResource, lake: LakeResource
    ) -> CheckedAsset:
        from pyspark.sql import functions as F

        from monitoring_pipeline.archive.window import archive_window

        window = run_window(context, lake)
        counts = archive_window(
            source, tracking, lake, window, on_progress=lambda read: context.log.info(f"{read} traces read")
        )
        traces = lake.read(AGENT_TRACES, window)
        status = traces["trace_info.status"]
        by_hour = traces.groupBy("trace_hour").agg(
            F.count("*").alias("rows"),
            F.count("*").alias("trace_count"),
            F.avg((status == "ERROR").cast("int")).alias("error_rate"),
            F.sum((status == "IN_PROGRESS").cast("int")).alias("in_progress"),
        )
        record_hours(context, window, utc_index(by_hour.toPandas(), "trace_hour"))
        context.log.info(
            f"{window}: {counts.read} traces read, {counts.written} new or changed, {counts.quarantined} in quarantine"
            f", {counts.moved} moved from another hour, {counts.deleted} left out as deleted"
        )
        if counts.redactions:
            taken_out = ", ".join(f"{name} {number}" for name, number in sorted(counts.redactions.items()))
            context.log.info(f"taken out of traces: {taken_out}")
        yield from checked(
            context,
            [
                *table_checks(ARCHIVE_KEY, AGENT_TRACES, traces),
                trace_ids_unique(lake, window),
                archive_complete(counts.lacking),
            ],
        )

    return [archived_traces]
