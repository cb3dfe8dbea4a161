"""Assets of performance, errors and span profiles, computed from the archive alone."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from monitoring_pipeline.derivations import (
    ERRORS_OF_TRACES,
    PERFORMANCE_OF_HOURS,
    PERFORMANCE_OF_TRACES,
    PROFILE_OF_SPANS,
    USAGE_OF_MODELS,
    Derivation,
)
from monitoring_pipeline.keys import ARCHIVE_KEY
from monitoring_pipeline.orchestration.assets.common import record_hours, table_asset, utc_index
from monitoring_pipeline.orchestration.checks import (
    LATEST_HOUR_IS_THERE,
    NO_SILENT_HOUR,
    CheckedAsset,
    checked,
    latest_hour_is_there,
    no_silent_hour,
    table_checks,
)
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    Figures = Callable[[DataFrame], DataFrame]
    Checks = Callable[[LakeResource, Window], list[dg.AssetCheckResult]]


def performance_assets(hours: dg.TimeWindowPartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The tables of performance."""
    return [
        _derived_asset(hours, PERFORMANCE_OF_TRACES, _trace_figures),
        _derived_asset(hours, ERRORS_OF_TRACES, _error_figures),
        _derived_asset(
            hours, PERFORMANCE_OF_HOURS, _hourly_figures, [NO_SILENT_HOUR, LATEST_HOUR_IS_THERE], _hours_are_there
        ),
        _derived_asset(hours, PROFILE_OF_SPANS, _span_figures),
        _derived_asset(hours, USAGE_OF_MODELS, _call_figures),
    ]


def _derived_asset(
    hours: dg.TimeWindowPartitionsDefinition,
    derivation: Derivation,
    figures: "Figures",
    more_specs: Sequence[dg.AssetCheckSpec] = (),
    more_checks: "Checks" = lambda lake, window: [],
) -> dg.AssetsDefinition:
    """The asset of a derived table; Dagster plots `figures` of each hour, and `more_checks` follow the table's own."""
    table, source = derivation.table, derivation.source
    upstream = ARCHIVE_KEY if source is AGENT_TRACES else source.name

    @table_asset(table, hours, "performance", deps=[upstream], checks=more_specs)
    def derived_table(context: dg.AssetExecutionContext, lake: LakeResource) -> CheckedAsset:
        window = run_window(context, lake)
        derivation.derive(lake, window)
        rows = lake.read(table, window)
        record_hours(context, window, utc_index(figures(rows).toPandas(), table.hour))
        yield from checked(context, [*table_checks(context.asset_key, table, rows), *more_checks(lake, window)])

    return derived_table


def _hours_are_there(lake: LakeResource, window: Window) -> list[dg.AssetCheckResult]:
    return [no_silent_hour(lake, window), latest_hour_is_there(lake, datetime.now(UTC))]


def _trace_figures(rows: "DataFrame") -> "DataFrame":
    from pyspark.sql import functions as F

    return rows.groupBy("trace_hour").agg(F.count("*").alias("rows"), F.sum("span_count").alias("span_count"))


def _error_figures(rows: "DataFrame") -> "DataFrame":
    from pyspark.sql import functions as F

    return rows.groupBy("trace_hour").agg(F.count("*").alias("rows"))


def _hourly_figures(rows: "DataFrame") -> "DataFrame":
    """Figures of each hour over all experiments: sums of counts, and percentiles of the worst experiment."""
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


def _call_figures(rows: "DataFrame") -> "DataFrame":
    from pyspark.sql import functions as F

    sums = (F.sum(name).alias(name) for name in ("call_count", "error_count", "total_tokens", "cost_usd"))
    return rows.groupBy("hour").agg(F.count("*").alias("rows"), *sums)


def _span_figures(rows: "DataFrame") -> "DataFrame":
    from pyspark.sql import functions as F

    of_all_names = F.col("span_name").isNull()
    return rows.groupBy("hour").agg(
        F.count("*").alias("rows"),
        F.sum(F.when(of_all_names, F.col("span_count"))).alias("span_count"),
        F.sum(F.when(of_all_names, F.col("error_count"))).alias("error_span_count"),
    )
