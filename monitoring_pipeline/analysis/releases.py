"""Comparison of two releases of an agent: error rates, durations, slower stages and new errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.analysis.breakdown import trace_property
from monitoring_pipeline.analysis.errors import error_groups, new_groups
from monitoring_pipeline.analysis.performance import ended_ms, span_ms, trace_errors
from monitoring_pipeline.analysis.statistics import quantile_difference, share_difference
from monitoring_pipeline.errors import MonitoringError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from pyspark.sql import DataFrame

SHARES = {"p50": 0.5, "p95": 0.95}
NAMED_VALUES = 10  # values of a property listed in an error message


@dataclass(frozen=True)
class ReleaseComparison:
    """Traces whose property `by` is `after`, compared with traces whose `by` is `before`. Intervals are 95 %.

    measures: indexed by error_rate, p50_duration_ms and p95_duration_ms: before, after, change (after - before), and
        low and high, the bounds of its interval.
    stages: one row per span type and name, largest slowdown of the median first (stages of only one release last):
        span_type, span_name, before_count and after_count (spans that ended), and for p50 and p95 the columns
        p50_before_ms, p50_after_ms, p50_change_ms, p50_low_ms and p50_high_ms.
    new_errors, gone_errors: groups of errors (see `errors.error_groups`) found only in `after`, or only in `before`.

    Bounds are null if there are too few values. Error rates use Newcombe's interval, durations the interval of
    `statistics.quantile_difference`. Traces, and spans of a stage, count as independent of each other.
    """

    by: str
    before: str
    after: str
    before_traces: int
    after_traces: int
    measures: pd.DataFrame
    stages: pd.DataFrame
    new_errors: pd.DataFrame
    gone_errors: pd.DataFrame


def compare_releases(traces: DataFrame, by: str, before: str, after: str) -> ReleaseComparison:
    """Compare rows of `agent_traces` by two values of a property (see `breakdown.trace_property`).

    Raises:
        MonitoringError: the property does not exist, or no trace has one of the values.
    """
    from pyspark.sql import functions as F

    marked = traces.withColumn("release", trace_property(by))
    compared = marked.where(F.col("release").isin(before, after))
    figures = _trace_figures(compared)
    for release in (before, after):
        if release not in figures:
            raise MonitoringError(f"no trace has {by} = {release!r}; {_found_values(marked)}")
    first, second = figures[before], figures[after]
    errors_before, errors_after = (
        error_groups(trace_errors(compared.where(F.col("release") == release))).toPandas()
        for release in (before, after)
    )
    return ReleaseComparison(
        by,
        before,
        after,
        first["trace_count"],
        second["trace_count"],
        _measures(first, second),
        _stages(compared, before, after),
        new_groups(errors_after, errors_before),
        new_groups(errors_before, errors_after),
    )


def _trace_figures(traces: DataFrame) -> dict[str, dict[str, Any]]:
    """trace_count, error_count and durations_ms (an array) of each release."""
    from pyspark.sql import functions as F

    figures = traces.groupBy("release").agg(
        F.count("*").alias("trace_count"),
        F.sum((F.col("trace_info.status") == "ERROR").cast("long")).alias("error_count"),
        F.collect_list(ended_ms()).alias("durations_ms"),
    )
    return {row["release"]: row | {"durations_ms": _array(row["durations_ms"])} for row in _rows(figures)}


def _measures(before: dict[str, Any], after: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    failed, failed_after = ((row["error_count"] or 0, row["trace_count"]) for row in (before, after))
    rates = (failed[0] / failed[1], failed_after[0] / failed_after[1])
    measures: dict[str, tuple[object, ...]] = {"error_rate": (*rates, *share_difference(failed, failed_after))}
    for name, share in SHARES.items():
        durations = (before["durations_ms"], after["durations_ms"])
        quantiles = (_quantile(values, share) for values in durations)
        measures[f"{name}_duration_ms"] = (*quantiles, *quantile_difference(*durations, share))
    frame = pd.DataFrame.from_dict(measures, orient="index", columns=["before", "after", "change", "low", "high"])
    return frame.astype(float).rename_axis("measure")


def _stages(traces: DataFrame, before: str, after: str) -> pd.DataFrame:
    import pandas as pd
    from pyspark.sql import functions as F

    spans = traces.select("release", F.explode("spans").alias("span"))
    durations = spans.groupBy(
        F.coalesce("span.span_type", F.lit("UNKNOWN")).alias("span_type"),
        F.coalesce("span.name", F.lit("")).alias("span_name"),
    ).agg(
        *(
            F.collect_list(F.when(F.col("release") == release, span_ms(F.col("span")))).alias(column)
            for release, column in ((before, "before"), (after, "after"))
        )
    )
    rows = [_stage(row, _array(row["before"]), _array(row["after"])) for row in _rows(durations)]
    columns = [*_stage({"span_type": "", "span_name": ""}, _array([]), _array([]))]
    order = ["p50_change_ms", "span_type", "span_name"]
    return pd.DataFrame(rows, columns=columns).sort_values(order, ascending=[False, True, True], ignore_index=True)


def _stage(row: dict[str, Any], before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    stage: dict[str, Any] = {"span_type": row["span_type"], "span_name": row["span_name"]}
    stage |= {"before_count": len(before), "after_count": len(after)}
    for name, share in SHARES.items():
        change = quantile_difference(before, after, share)
        stage |= {f"{name}_before_ms": _quantile(before, share), f"{name}_after_ms": _quantile(after, share)}
        stage |= {f"{name}_change_ms": change.value, f"{name}_low_ms": change.low, f"{name}_high_ms": change.high}
    return stage


def _found_values(marked: DataFrame) -> str:
    from pyspark.sql import functions as F

    counts = marked.groupBy("release").count().where(F.col("release").isNotNull())
    values = [row["release"] for row in _rows(counts.orderBy(F.desc("count"), "release").limit(NAMED_VALUES))]
    return f"found values: {', '.join(map(repr, values))}" if values else "no trace has any value for it"


def _rows(frame: DataFrame) -> list[dict[str, Any]]:
    return frame.toArrow().to_pylist()


def _array(values: list[float]) -> np.ndarray:
    import numpy as np

    return np.asarray(values, dtype=float)


def _quantile(values: np.ndarray, share: float) -> float:
    import numpy as np

    return float(np.quantile(values, share)) if len(values) else math.nan
