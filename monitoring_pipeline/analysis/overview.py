"""Overview of a set of traces: success rate, errors and latencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitoring_pipeline.analysis.percentiles import percentile_columns
from monitoring_pipeline.analysis.performance import ended_ms
from monitoring_pipeline.analysis.statistics import share_interval
from monitoring_pipeline.analysis.sums import in_order, mean
from monitoring_pipeline.text import json_or_text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SAMPLE_ERRORS = 5


def overview(traces: DataFrame) -> dict[str, Any]:
    """Figures of rows of `agent_traces`: total_traces, success_rate, error_count, latencies and sample_errors.

    success_rate is the share with status OK, success_rate_interval its 95 % Wilson interval; error_count counts status
    ERROR. avg_, p50_, p95_ and p99_latency_ms are exact, with linear interpolation, over traces that have ended (None
    without any). sample_errors are the requests of the latest five traces with status ERROR. Without any trace, the
    result contains only total_traces, 0.
    """
    from pyspark.sql import functions as F

    status = F.col("trace_info.status")
    figures = traces.withColumn("duration_ms", ended_ms()).agg(
        F.count("*").alias("total"),
        F.sum((status == "OK").cast("long")).alias("succeeded"),
        F.sum((status == "ERROR").cast("long")).alias("failed"),
        in_order("duration_ms").alias("durations_ms"),
    )
    durations_ms = F.col("durations_ms")
    figures = figures.select(
        "total",
        "succeeded",
        "failed",
        mean(durations_ms).alias("avg_latency_ms"),
        *percentile_columns(durations_ms, "latency_ms"),
    )
    [row] = figures.toArrow().to_pylist()
    if row["total"] == 0:
        return {"total_traces": 0}
    succeeded = row["succeeded"] or 0
    latest = traces.where(status == "ERROR").orderBy(F.desc("trace_info.timestamp"), "trace_id").limit(SAMPLE_ERRORS)
    return {
        "total_traces": row["total"],
        "success_rate": succeeded / row["total"],
        "success_rate_interval": share_interval(succeeded, row["total"]),
        "error_count": row["failed"] or 0,
        "avg_latency_ms": row["avg_latency_ms"],
        "p50_latency_ms": row["p50_latency_ms"],
        "p95_latency_ms": row["p95_latency_ms"],
        "p99_latency_ms": row["p99_latency_ms"],
        "sample_errors": [json_or_text(error["request"]) for error in latest.select("request").toArrow().to_pylist()],
    }
