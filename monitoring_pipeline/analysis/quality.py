"""Quality by hour or day: mean scores with intervals, computed from assessments and their ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.statistics import mean_interval
from monitoring_pipeline.analysis.sums import in_order, mean, total
from monitoring_pipeline.analysis.verdicts import PASS_FAIL, passes

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame


def quality(assessments: DataFrame, coverage: DataFrame, pass_if: Mapping[str, str], *, by_hour: bool) -> pd.DataFrame:
    """Scores aggregated by experiment, scorer and digest, and by hour with `by_hour`.

    Columns of the table `hourly_quality` (without `hour` unless `by_hour`). `pass_rate` is the share of scores that
    pass the scorer's rule in `pass_if`; without a rule it is the mean score if every value is a pass or a fail, else
    null. The interval is for the mean over all traces that pass the scorer's filter, sampled or not: `eligible +
    unsampled` of the ledger.
    """
    import pandas as pd
    from pyspark.sql import functions as F

    by_rule = [F.when(F.col("scorer") == name, passes(F.col("score"), rule)) for name, rule in pass_if.items()]
    passed = F.coalesce(*by_rule, F.lit(None).cast("boolean"))
    keys = [*(["hour"] if by_hour else []), "experiment_id", "scorer", "scorer_digest"]
    scores = (
        assessments.withColumnRenamed("trace_hour", "hour")
        .groupBy(*keys)
        .agg(
            F.sum(F.col("error_code").isNull().cast("long")).alias("scored"),
            F.sum(F.col("error_code").isNotNull().cast("long")).alias("failed"),
            in_order("score").alias("scores"),
            in_order("cost_usd").alias("costs"),
            F.min(F.col("value").rlike(PASS_FAIL).cast("int")).alias("pass_fail"),
            F.avg(passed.cast("int")).alias("passed"),
        )
        .withColumns({"mean_score": mean(F.col("scores")), "cost_usd": total(F.col("costs"))})
        .toPandas()
    )
    population = F.sum(F.col("eligible") + F.col("unsampled")).alias("population")
    rows = scores.merge(coverage.groupBy(*keys).agg(population).toPandas(), on=keys, how="left")
    rows["pass_rate"] = rows["passed"].fillna(
        rows["mean_score"].where((rows["pass_fail"] == 1) & ~rows["scorer"].isin([*pass_if]))
    )
    bounds = [_bounds(list(row.scores), row.population) for row in rows.itertuples()]
    rows["ci_low"] = pd.Series([low for low, _ in bounds], index=rows.index, dtype=float)
    rows["ci_high"] = pd.Series([high for _, high in bounds], index=rows.index, dtype=float)
    return rows[[*keys, "scored", "mean_score", "pass_rate", "ci_low", "ci_high", "failed", "cost_usd"]]


def _bounds(scores: list[float], population: float) -> tuple[float | None, float | None]:
    if math.isnan(population):  # the run was killed before its ledger update, and its digest has since been replaced
        return None, None
    return mean_interval(scores, int(population)) or (None, None)
