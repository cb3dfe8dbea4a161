"""Performance, errors and where the time goes, from the archive alone."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from monitoring_pipeline.analysis import performance
from monitoring_pipeline.keys import ARCHIVE_KEY
from monitoring_pipeline.orchestration.assets.common import record_hours, table_metadata, tags, utc_index
from monitoring_pipeline.orchestration.checks import (
    LATEST_HOUR_IS_THERE,
    NO_SILENT_HOUR,
    CheckedAsset,
    checked,
    latest_hour_is_there,
    no_silent_hour,
    table_check_specs,
    table_checks,
)
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    HOURLY_PERFORMANCE,
    SPAN_PROFILE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
    Table,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def performance_assets(hours: dg.TimeWindowPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The four tables of performance."""
    return [
        _table_asset(
            hours, TRACE_PERFORMANCE, AGENT_TRACES, ARCHIVE_KEY, performance.trace_performance, _trace_figures
        ),
        _table_asset(hours, TRACE_ERRORS, AGENT_TRACES, ARCHIVE_KEY, performance.trace_errors, _error_figures),
        _table_asset(
            hours,
            HOURLY_PERFORMANCE,
            TRACE_PERFORMANCE,
            TRACE_PERFORMANCE.name,
            performance.hourly_performance,
            _hourly_figures,
        ),
        _table_asset(hours, SPAN_PROFILE, AGENT_TRACES, ARCHIVE_KEY, performance.span_profile, _span_figures),
    ]


def _table_asset(
    hours: dg.TimeWindowPartitionsDefinition,
    table: Table,
    source: Table,
    upstream: str,
    transform: "Callable[[DataFrame], DataFrame]",
    figures: "Callable[[DataFrame], DataFrame]",
) -> dg.AssetsDefinition:
    """An asset that makes the window's rows of `table` out of those of `source`, and plots `figures` of each hour."""
    is_watched = table == HOURLY_PERFORMANCE  # for hours that are missing

    @dg.asset(
        name=table.name,
        deps=[upstream],
        partitions_def=hours,
        group_name="performance",
        kinds={"spark", "deltalake"},
        code_version="1",
        backfill_policy=dg.BackfillPolicy.single_run(),
        tags=tags(table),
        metadata=table_metadata(table),
        check_specs=[
            *table_check_specs(table.name, table),
            *([NO_SILENT_HOUR, LATEST_HOUR_IS_THERE] if is_watched else []),
        ],
        description=table.description,
    )
    def table_asset(context: dg.AssetExecutionContext, lake: LakeResource) -> CheckedAsset:
        window = run_window(context, lake)
        lake.replace(table, window, transform(lake.read(source, window)))
        rows = lake.read(table, window)
        record_hours(context, window, utc_index(figures(rows).toPandas(), table.hour))
        checks = table_checks(context.asset_key, table, rows)
        if is_watched:
            checks += [no_silent_hour(lake, window), latest_hour_is_there(lake, datetime.now(UTC))]
        yield from checked(context, checks)

    return table_asset


def _trace_figures(rows: "DataFrame") -> "DataFrame":
    from pyspark.sql import functions as F

    return rows.groupBy("trace_hour").agg(F.count("*").alias("rows"), F.sum("span_count").alias("span_count"))


def _error_figures(rows: "DataFrame") -> "DataFrame":
    from pyspark.sql import functions as F

    return rows.groupBy("trace_hour").agg(F.count("*").alias("rows"))


def _hourly_figures(rows: "DataFrame") -> "DataFrame":
    """An hour over all experiments: counts add up; of the percentiles, the worst experiment's."""
    from pyspark.sql import functions as F

    of_all_names = F.col("trace_name").isNull()
    sums = {name: F.sum(F.when(of_all_names, F.col(name))) for name in ("trace_count", "error_count", "cost_usd")}
    percentiles = ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms")
    return rows.groupBy("hour").agg(
        F.count("*").alias("rows"),
        sums["trace_count"].alias("trace_count"),
        (sums["error_count"] / sums["trace_count"]).alias("error_rate"),
        *(F.max(F.when(of_all_names, F.col(name))).alias(name) for name in percentiles),
        sums["cost_usd"].alias("cost_usd"),
    )


def _span_figures(rows: "DataFrame") -> "DataFrame":
    from pyspark.sql import functions as F

    of_all_names = F.col("span_name").isNull()
    return rows.groupBy("hour").agg(
        F.count("*").alias("rows"),
        F.sum(F.when(of_all_names, F.col("span_count"))).alias("span_count"),
        F.sum(F.when(of_all_names, F.col("error_count"))).alias("error_span_count"),
    )
