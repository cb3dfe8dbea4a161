"""Quality by hour or day: assessments and their ledger in, mean scores with intervals out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.statistics import mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

PASS_FAIL = r'^(true|false|"(?i:yes|no|true|false|pass|fail)")$'


def quality(assessments: DataFrame, coverage: DataFrame, *, by_hour: bool) -> pd.DataFrame:
    """Scores summed up by hour (or over all rows given), experiment, scorer and digest.

    Columns of the table `hourly_quality` (without `hour` unless `by_hour`). `pass_rate` is the mean where every value
    is a pass or a fail, else null. The interval is that of the mean over all traces that pass the scorer's filter,
    sampled or not: `eligible + unsampled` of the ledger.
    """
    import pandas as pd
    from pyspark.sql import functions as F

    keys = [*(["hour"] if by_hour else []), "experiment_id", "scorer", "scorer_digest"]
    is_pass_fail = F.col("value").rlike(PASS_FAIL)
    scores = (
        assessments.withColumnRenamed("trace_hour", "hour")
        .groupBy(*keys)
        .agg(
            F.sum(F.col("error_code").isNull().cast("long")).alias("scored"),
            F.sum(F.col("error_code").isNotNull().cast("long")).alias("failed"),
            F.count("score").alias("numeric"),
            F.avg("score").alias("mean_score"),
            F.var_samp("score").alias("variance"),
            F.min(F.col("score").isin(0.0, 1.0).cast("int")).alias("binary"),
            F.min(is_pass_fail.cast("int")).alias("pass_fail"),
            F.sum("cost_usd").alias("cost_usd"),
        )
        .toPandas()
    )
    population = (
        coverage.groupBy(*keys).agg(F.sum(F.col("eligible") + F.col("unsampled")).alias("population")).toPandas()
    )
    rows = scores.merge(population, on=keys, how="left")
    rows["pass_rate"] = rows["mean_score"].where(rows["pass_fail"] == 1)
    bounds = [
        mean_interval(row.numeric, row.mean_score, row.variance, int(row.population), row.binary == 1)
        if row.numeric
        else None
        for row in rows.itertuples()
    ]
    rows[["ci_low", "ci_high"]] = pd.DataFrame(
        [bound or (None, None) for bound in bounds], index=rows.index, dtype=float
    )
    return rows[[*keys, "scored", "mean_score", "pass_rate", "ci_low", "ci_high", "failed", "cost_usd"]]
