from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame

from monitoring_pipeline.analysis.summaries import CONFIDENCE, score_moments, stage_sums, totals
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.tables import ASSESSMENTS, SPAN_PROFILE, TRACE_PERFORMANCE, Table
from monitoring_pipeline_tests.sources.stores import START


def frame(spark: SparkResource, table: Table, rows: list[dict[str, Any]]) -> DataFrame:
    return spark.session.createDataFrame(pa.Table.from_pylist(rows, schema=table.schema))


@pytest.fixture(scope="module")
def traces() -> list[dict[str, Any]]:
    """2,000 traces of two experiments and of none, with skewed durations; some unfinished, some without a cost."""
    random = np.random.default_rng(3)
    return [
        {
            "trace_id": f"tr-{n}",
            "trace_hour": START,
            "experiment_id": ["1", "2", None][n % 3],
            "status": "IN_PROGRESS" if n % 50 == 0 else ("ERROR" if n % 7 == 0 else "OK"),
            "duration_ms": None if n % 50 == 0 else float(random.lognormal(6, 1)),
            "input_tokens": 10,
            "output_tokens": 1,
            "total_tokens": 11,
            "cost_usd": None if n % 5 == 0 else float(random.exponential(0.01)),
        }
        for n in range(2000)
    ]


def test_totals_equal_those_of_pandas(spark: SparkResource, traces: list[dict[str, Any]]) -> None:
    found = totals(frame(spark, TRACE_PERFORMANCE, traces)).toPandas()
    expected = pd.DataFrame(traces).fillna({"experiment_id": ""})
    assert sorted(found["experiment_id"].fillna("all")) == ["", "1", "2", "all"]
    for row in found.to_dict("records"):
        rows = expected if row["experiment_id"] is None else expected[expected["experiment_id"] == row["experiment_id"]]
        durations, costs = rows["duration_ms"].dropna(), rows["cost_usd"].dropna()
        counts = rows["status"].value_counts()
        assert (row["trace_count"], row["ok_count"], row["error_count"]) == (len(rows), counts["OK"], counts["ERROR"])
        assert row["mean_duration_ms"] == pytest.approx(durations.mean())
        for rank in (50, 95, 99):
            assert row[f"p{rank}_duration_ms"] == pytest.approx(np.percentile(durations, rank))
        assert (row["total_tokens"], row["costed"]) == (11 * len(rows), len(costs))
        assert [row["cost_usd"], row["cost_mean"], row["cost_variance"]] == pytest.approx(
            [costs.sum(), costs.mean(), costs.var()]
        )
        assert row["p95_low"] in set(durations)
        assert row["p95_low"] < row["p95_duration_ms"] < row["p95_high"]


def test_the_interval_of_p95_has_its_nominal_coverage(spark: SparkResource) -> None:
    random, samples, size = np.random.default_rng(5), 1500, 400
    durations = random.lognormal(0, 1, (samples, size))
    true = math.exp(1.6448536)
    table = pa.table(
        {
            "sample": np.repeat(np.arange(samples), size),
            "duration_ms": durations.ravel(),
            **{name: pa.nulls(samples * size, pa.string()) for name in ("experiment_id", "status")},
            **{
                name: pa.nulls(samples * size, pa.int64()) for name in ("input_tokens", "output_tokens", "total_tokens")
            },
            "cost_usd": pa.nulls(samples * size, pa.float64()),
        }
    )
    found = totals(spark.session.createDataFrame(table), "sample").where("experiment_id IS NULL").toPandas()
    held = ((found["p95_low"] <= true) & (true <= found["p95_high"])).mean()
    assert len(found) == samples
    assert held == pytest.approx(CONFIDENCE, abs=0.01)


def test_p95_of_few_traces_has_no_interval(spark: SparkResource, traces: list[dict[str, Any]]) -> None:
    found = totals(frame(spark, TRACE_PERFORMANCE, traces[1:60])).toPandas()
    assert found["p95_duration_ms"].notna().all()
    assert found["p95_high"].isna().all()


def assessment(n: int, scorer: str, value: str, score: float | None, error: str | None = None) -> dict[str, Any]:
    return {
        "trace_id": f"tr-{n}",
        "trace_hour": START,
        "experiment_id": "1",
        "scorer": scorer,
        "scorer_digest": "d",
        "assessment_id": f"{scorer}-{n}",
        "value": value,
        "score": score,
        "error_code": error,
    }


def test_scores_have_moments_and_with_a_pass_rule_a_pass_rate(spark: SparkResource) -> None:
    random = np.random.default_rng(9)
    numbers = [float(value) for value in random.random(50)]
    rows = [assessment(n, "number", f"{value}", value) for n, value in enumerate(numbers)]
    rows += [assessment(n, "ruled", f"{value}", value) for n, value in enumerate(numbers)]
    rows += [assessment(n, "word", '"yes"' if n % 4 else '"no"', float(n % 4 > 0)) for n in range(40)]
    rows += [assessment(99, "word", "null", None, "TIMEOUT")]
    found = score_moments(frame(spark, ASSESSMENTS, rows), {"ruled": ">= 0.8"}).toPandas().set_index("scorer")
    assert found["scored"].to_dict() == {"number": 50, "ruled": 50, "word": 40}
    assert found.loc["number", ["mean_score", "score_variance"]].tolist() == pytest.approx(
        [np.mean(numbers), np.var(numbers, ddof=1)]
    )
    assert found["binary"].to_dict() == {"number": 0, "ruled": 0, "word": 1}
    assert found["judged"].to_dict() == {"number": 0, "ruled": 50, "word": 40}
    assert found["pass_rate"].dropna().to_dict() == {"ruled": np.mean(np.array(numbers) >= 0.8), "word": 0.75}


def test_stages_add_up_over_hours_without_the_rows_of_whole_types(spark: SparkResource) -> None:
    row = {"hour": START, "experiment_id": "1", "span_type": "TOOL", "span_count": 2, "error_count": 1}
    times = {"total_ms": 10.0, "self_time_ms": 4.0, "max_ms": 7.0}
    rows = [row | times | {"span_name": name} for name in ("a", "a", "b", None)]
    rows[1] |= {"max_ms": 9.0}
    found = stage_sums(frame(spark, SPAN_PROFILE, rows)).toPandas().sort_values("span_name")
    assert found.drop(columns=["experiment_id", "span_type"]).to_numpy().tolist() == [
        ["a", 4, 2, 20.0, 8.0, 9.0],
        ["b", 2, 1, 10.0, 4.0, 7.0],
    ]
