"""Summaries of a period, for comparison with another: aggregates rows of the lake to one row per group."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.percentiles import percentile_columns
from monitoring_pipeline.analysis.sums import in_order, mean, total
from monitoring_pipeline.analysis.verdicts import PASS_FAIL, passes

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

CONFIDENCE = 0.99  # for changes; a report makes a dozen comparisons, and each may be significant by chance


def totals(performance: DataFrame, *keys: str) -> DataFrame:
    """`trace_performance` aggregated by `keys` and experiment, and by `keys` alone (experiment_id null).

    The experiment of traces without one is "".

    Columns, besides the keys: trace_count, ok_count, error_count; mean_duration_ms, p50_duration_ms, p95_duration_ms,
    p99_duration_ms (exact, linear interpolation), p95_low and p95_high, the bounds of the 99 % interval of p95 (null
    with too few traces); input_tokens, output_tokens, total_tokens, cost_usd; costed (traces with a known cost),
    cost_mean and cost_variance of these. Durations are in milliseconds.

    Source of the interval, which holds for any distribution: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed.,
    2003, section 7.1: two order statistics, their ranks by the normal approximation of the binomial distribution.
    """
    by_experiment = _totals(performance.fillna({"experiment_id": ""}), *keys, "experiment_id")
    return by_experiment.unionByName(_totals(performance, *keys), allowMissingColumns=True)


def _totals(performance: DataFrame, *keys: str) -> DataFrame:
    from pyspark.sql import functions as F

    def with_status(status: str) -> Column:
        return F.sum((F.col("status") == status).cast("long"))

    sums = performance.groupBy(*keys).agg(
        F.count("*").alias("trace_count"),
        with_status("OK").alias("ok_count"),
        with_status("ERROR").alias("error_count"),
        in_order("duration_ms").alias("durations_ms"),
        *(F.sum(column).alias(column) for column in ("input_tokens", "output_tokens", "total_tokens")),
        in_order("cost_usd").alias("costs_usd"),
        F.count("cost_usd").alias("costed"),
        F.var_samp("cost_usd").alias("cost_variance"),
    )
    low, high = _bounds(F.col("durations_ms"), 0.95)
    return sums.select(
        *keys,
        "trace_count",
        "ok_count",
        "error_count",
        mean(F.col("durations_ms")).alias("mean_duration_ms"),
        *percentile_columns(F.col("durations_ms"), "duration_ms"),
        low.alias("p95_low"),
        high.alias("p95_high"),
        "input_tokens",
        "output_tokens",
        "total_tokens",
        total(F.col("costs_usd")).alias("cost_usd"),
        "costed",
        mean(F.col("costs_usd")).alias("cost_mean"),
        "cost_variance",
    )


def _bounds(values: Column, share: float) -> tuple[Column, Column]:
    """The elements of a sorted array that bound the interval of its quantile; null if the array is too short."""
    from pyspark.sql import functions as F

    count = F.size(values)
    margin = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * F.sqrt(count * (share * (1 - share)))
    low, high = F.floor(count * share - margin).cast("int"), F.ceil(count * share + margin).cast("int") + 1
    return F.when(low >= 1, F.get(values, low - 1)), F.when(high <= count, F.get(values, high - 1))


def score_moments(assessments: DataFrame, pass_if: Mapping[str, str], *keys: str) -> DataFrame:
    """Moments of the scores by `keys`, experiment, scorer and digest, regardless of the share of traces scored.

    Columns, besides the keys: scored, mean_score, score_variance, binary (every score is 0 or 1), judged (scores that
    are a pass or a fail, by the scorer's rule in `pass_if` or by their value) and pass_rate of these.
    """
    from pyspark.sql import functions as F

    by_rule = [F.when(F.col("scorer") == name, passes(F.col("score"), rule)) for name, rule in pass_if.items()]
    by_value = F.when(F.col("value").rlike(PASS_FAIL), F.col("score") == 1)
    passed = F.coalesce(*by_rule, by_value).cast("int")
    return (
        assessments.where(F.col("error_code").isNull())
        .groupBy(*keys, "experiment_id", "scorer", "scorer_digest")
        .agg(
            F.count("score").alias("scored"),
            F.avg("score").alias("mean_score"),
            F.var_samp("score").alias("score_variance"),
            F.min(F.col("score").isin(0.0, 1.0).cast("int")).alias("binary"),
            F.count(passed).alias("judged"),
            F.avg(passed).alias("pass_rate"),
        )
    )


def stage_sums(profile: DataFrame, *keys: str) -> DataFrame:
    """`span_profile` aggregated by `keys`, experiment, span type and span name.

    Columns, besides the keys: span_count, error_count, total_ms, self_time_ms, max_ms.
    """
    from pyspark.sql import functions as F

    return (
        profile.where(F.col("span_name").isNotNull())
        .groupBy(*keys, "experiment_id", "span_type", "span_name")
        .agg(
            *(F.sum(column).alias(column) for column in ("span_count", "error_count", "total_ms", "self_time_ms")),
            F.max("max_ms").alias("max_ms"),
        )
    )
