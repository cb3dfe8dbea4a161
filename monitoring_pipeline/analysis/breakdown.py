"""Figures of traces by a property: a tag, a metadata key or a column."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.performance import performance_figures, trace_performance
from monitoring_pipeline.errors import MonitoringError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

PROPERTIES = ("trace_name", "user_id", "session_id", "experiment_id", "experiment_name", "run_id", "status")
_KEY = re.compile(r"(tag|tags|metadata|request_metadata)\.(`[^`]+`|\"[^\"]+\"|[^`\"]+)", re.DOTALL)


def break_down(traces: DataFrame, by: str) -> DataFrame:
    """Figures of `agent_traces` by value of a property (see `trace_property`), most traces first.

    Columns: `value` (null: traces without a value), then the figures of the table `hourly_performance`: trace_count,
    error_count, error_rate, durations in milliseconds, span_count, tokens and cost_usd.

    Raises:
        MonitoringError: the property does not exist.
    """
    from pyspark.sql import functions as F

    performance = trace_performance(traces, trace_property(by).alias("value"))
    return performance_figures(performance, "value").orderBy(F.desc("trace_count"), F.asc_nulls_last("value"))


def trace_property(by: str) -> Column:
    """A property of traces in MLflow's filter syntax: tags.environment, metadata.`mlflow.source.name`, user_id.

    Raises:
        MonitoringError: it is not a tag, a metadata key or one of `PROPERTIES`.
    """
    from pyspark.sql import functions as F

    if by in PROPERTIES:
        return F.col("trace_info.status" if by == "status" else by)
    if match := _KEY.fullmatch(by):
        column = "tags" if match[1].startswith("tag") else "metadata"
        return F.col(column)[match[2].strip('`"')]
    raise MonitoringError(
        f"{by!r} is not a property of traces: use tags.<key>, metadata.<key> or one of {', '.join(PROPERTIES)}"
    )
