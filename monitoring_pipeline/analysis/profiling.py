"""The time profile of one trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monitoring_pipeline.analysis.critical_path import critical_path
from monitoring_pipeline.analysis.performance import span_figures, spans_with_self_time

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

FIGURES = {
    "span_count": "count",
    "error_count": "error_count",
    "total_ms": "total_ms",
    "avg_ms": "avg_ms",
    "max_ms": "max_ms",
    "self_time_ms": "self_time_ms",
}


def profile(trace: DataFrame) -> dict[str, Any]:
    """The time profile of one trace, the only row of `trace` (from `agent_traces`).

    trace_id, status and duration_ms are those of the trace. by_type and by_stage hold, for each span type and each span
    name, most self time first: count, error_count, total_ms, avg_ms, max_ms and self_time_ms (as in the table
    span_profile). critical_path is a list of `PathPart`.
    """
    [row] = trace.select("trace_id", "trace_info.status", "duration_ms", "spans").toArrow().to_pylist()
    spans = spans_with_self_time(trace)
    return {
        "trace_id": row["trace_id"],
        "status": row["status"],
        "duration_ms": row["duration_ms"],
        "by_type": _figures(spans, "span_type"),
        "by_stage": _figures(spans, "span_name"),
        "critical_path": critical_path(row["spans"] or []),
    }


def _figures(spans: DataFrame, key: str) -> dict[str, dict[str, Any]]:
    from pyspark.sql import functions as F

    figures = span_figures(spans, key).orderBy(F.desc_nulls_last("self_time_ms"), key).toArrow().to_pylist()
    return {row[key]: {name: row[column] for column, name in FIGURES.items()} for row in figures}
