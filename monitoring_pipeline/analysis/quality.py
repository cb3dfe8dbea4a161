"""Quality by hour, day or range: mean scores and pass rates with intervals, from assessments and their ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from monitoring_pipeline.analysis.estimation import Figure, Scale, Stratum, figure
from monitoring_pipeline.analysis.sums import in_order, total
from monitoring_pipeline.analysis.verdicts import PASS_FAIL, passes

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

OF = ["experiment_id", "scorer", "scorer_digest"]
FIGURES = ["mean_score", "pass_rate", "ci_low", "ci_high", "pass_low", "pass_high"]
COLUMNS = ["scored", *FIGURES, "population", "covered_hours", "hours", "failed", "cost_usd"]
Slot = Literal["hour", "day", "all"]


@dataclass(frozen=True)
class Reading:
    """How scores are read, by scorer: the rules by which they pass (such as ">= 0.5"), and the scales they are on."""

    pass_if: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)


def quality(assessments: DataFrame, coverage: DataFrame, reading: Reading, slot: Slot) -> pd.DataFrame:
    """Scores by experiment, scorer and digest, and by `hour`: an hour, or the start of a day; without it for "all".

    Columns besides these: scored and failed (results), mean_score and its 95 % interval ci_low and ci_high, pass_rate
    and its interval pass_low and pass_high, population (the traces that the figures are of), covered_hours (hours with
    scores) of hours (with traces), cost_usd. The figures are of all traces that pass the scorer's filter, sampled or
    not, in the hours with scores: `eligible + unsampled` of the ledger. Without a ledger there are no intervals.
    `pass_rate` follows the scorer's rule; without a rule it is null unless every value is a pass or a fail.
    """
    import pandas as pd

    hours = _hours(assessments, coverage, reading)
    hours["slot"] = (
        hours["hour"] if slot == "hour" else hours["hour"].dt.floor("D") if slot == "day" else pd.Timestamp(0)
    )
    rows = [
        {"slot": at, **dict(zip(OF, of, strict=True)), **_row(of_slot, reading)}
        for (at, *of), of_slot in hours.groupby(["slot", *OF], dropna=False, sort=True)
        if of_slot["results"].any()
    ]
    frame = pd.DataFrame(rows, columns=["slot", *OF, *COLUMNS]).rename(columns={"slot": "hour"})
    frame = frame.astype({**dict.fromkeys(FIGURES, float), "cost_usd": float, "population": "Int64"})
    return frame if slot != "all" else frame.drop(columns="hour")


def _hours(assessments: DataFrame, coverage: DataFrame, reading: Reading) -> pd.DataFrame:
    """A row for each hour with results or with traces for the scorer: its scores, and the traces they stand for."""
    from pyspark.sql import functions as F

    by_rule = [
        F.when(F.col("scorer") == name, passes(F.col("score"), rule)) for name, rule in sorted(reading.pass_if.items())
    ]
    passed = F.coalesce(*by_rule, F.lit(None).cast("boolean"))
    keys = ["hour", *OF]
    scores = (
        assessments.withColumnRenamed("trace_hour", "hour")
        .groupBy(*keys)
        .agg(
            F.count("*").alias("results"),
            F.sum(F.col("error_code").isNotNull().cast("long")).alias("failed"),
            in_order("score").alias("scores"),
            in_order("cost_usd").alias("costs"),
            F.min(F.col("value").rlike(PASS_FAIL).cast("int")).alias("pass_fail"),
            F.sum(passed.cast("long")).alias("passed"),
            F.max("sample_rate").alias("rate"),
        )
        .withColumn("cost_usd", total(F.col("costs")))
        .drop("costs")
        .toPandas()
    )
    population = F.sum(F.col("eligible") + F.col("unsampled")).alias("population")
    ledger = coverage.groupBy(*keys).agg(population).toPandas()
    hours = scores.merge(ledger, on=keys, how="outer")
    hours["results"] = hours["results"].fillna(0).astype(int)
    return hours[(hours["results"] > 0) | (hours["population"] > 0)]


def _row(hours: pd.DataFrame, reading: Reading) -> dict[str, Any]:
    """The figures of the hours, which are those of one scorer."""
    import pandas as pd

    scorer = hours["scorer"].iloc[0]
    with_results = hours[hours["results"] > 0]
    has_ledger = bool(with_results["population"].notna().all())  # else a run was killed before it updated the ledger
    means = figure([*_strata(hours, "scores")], reading.scales.get(scorer))
    rates = None
    if scorer in reading.pass_if:
        rates = figure([*_strata(hours, "passed")])
    elif (with_results["pass_fail"].dropna() == 1).all():
        rates = means
    counted = means or Figure(0, None, None, 0, 0, len(hours))
    return {
        "scored": int(with_results["results"].sum() - with_results["failed"].sum()),
        "mean_score": means.mean if means else None,
        "pass_rate": rates.mean if rates else None,
        **(_bounds("ci", means) if has_ledger else {}),
        **(_bounds("pass", rates) if has_ledger else {}),
        "population": counted.population if has_ledger else None,
        "covered_hours": counted.covered,
        "hours": counted.hours,
        "failed": int(with_results["failed"].sum()),
        "cost_usd": None if pd.isna(cost := with_results["cost_usd"].sum(min_count=1)) else float(cost),
    }


def _strata(hours: pd.DataFrame, of: Literal["scores", "passed"]) -> Iterator[Stratum]:
    """The hours with their scores, or with 1 for a score that passes and 0 for one that does not."""
    import pandas as pd

    for row in hours.to_dict("records"):
        scores = [] if row["results"] == 0 else [float(score) for score in row["scores"]]
        if of == "passed":
            passed = int(row["passed"]) if scores else 0
            scores = [1.0] * passed + [0.0] * (len(scores) - passed)
        population = 0 if pd.isna(row["population"]) else int(row["population"])
        failed = 0 if row["results"] == 0 else int(row["failed"])
        yield Stratum(scores, population, failed, 1.0 if pd.isna(row["rate"]) else float(row["rate"]))


def _bounds(name: str, found: Figure | None) -> dict[str, float | None]:
    return {f"{name}_low": found.low, f"{name}_high": found.high} if found else {}
