"""The draw: MLflow's own, the same in Python and in Spark, and a fair share at every rate."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow.genai.scorers import Guidelines
from mlflow.genai.scorers.online.entities import OnlineScorer, OnlineScoringConfig
from mlflow.genai.scorers.online.sampler import OnlineScorerSampler
from scipy import stats

from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring.sampling import drawn, in_sample

NAME = "response_quality"
IDS = [f"tr-{number:032x}" for number in range(3000)]
HOSTILE_IDS = ["", "a:b", "'", '"; --', "é🦜", "\x00", "x" * 10_000, "line\nline"]
RATES = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999]

rates = st.floats(0, 1)
trace_ids = st.text(st.characters(exclude_categories=["Cs"]))


@cache
def draw(trace_id: str) -> int:
    """The hash of a trace as a share of 2**256, computed independently."""
    return int.from_bytes(hashlib.sha256(f"{trace_id}:{NAME}".encode()).digest(), "big")


def mlflow_samples(rate: float) -> Callable[[str], bool]:
    """Whether MLflow's online sampler selects a trace for a single scorer."""
    config = OnlineScoringConfig("config", "scorer", sample_rate=rate, experiment_id="0")
    judge = Guidelines(name=NAME, guidelines="Be kind.")  # online, MLflow runs only judges, not code scorers
    sampler = OnlineScorerSampler([OnlineScorer(NAME, json.dumps(judge.model_dump()), config)])
    (alone,) = sampler.group_scorers_by_filter(session_level=False)[None]
    return lambda trace_id: sampler.sample(trace_id, [alone]) == [alone]


def spark_samples(spark: SparkResource, ids: list[str], rate: float) -> list[str]:
    frame = spark.session.createDataFrame([(trace_id,) for trace_id in ids], "trace_id string")
    return [row["trace_id"] for row in frame.where(drawn(NAME, rate)).collect()]


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_the_sample_equals_that_of_mlflows_online_scoring(rate: float) -> None:
    is_taken = mlflow_samples(rate)

    assert [trace_id for trace_id in IDS if in_sample(trace_id, NAME, rate)] == list(filter(is_taken, IDS))


@given(trace_ids, rates)
def test_a_trace_is_in_the_sample_if_its_draw_is_below_the_rate(trace_id: str, rate: float) -> None:
    numerator, denominator = rate.as_integer_ratio()

    assert in_sample(trace_id, NAME, rate) == (draw(trace_id) * denominator < numerator * 2**256)


@given(trace_ids, rates, rates)
def test_raising_the_rate_only_adds_traces(trace_id: str, one: float, other: float) -> None:
    assert in_sample(trace_id, NAME, min(one, other)) <= in_sample(trace_id, NAME, max(one, other))


@given(trace_ids)
def test_rate_one_samples_all_traces_and_rate_zero_none(trace_id: str) -> None:
    assert (in_sample(trace_id, NAME, 1.0), in_sample(trace_id, NAME, 0.0)) == (True, False)


def test_scorers_draw_independently() -> None:
    both = sum(in_sample(trace_id, "one", 0.5) and in_sample(trace_id, "other", 0.5) for trace_id in IDS)

    low, high = stats.binom.interval(0.999, len(IDS), 0.25)
    assert low <= both <= high


def neighbours_of_a_draw(trace_id: str) -> list[float]:
    """The floats next to the exact draw of a trace: the upper rate includes it, the lower does not."""
    nearest = draw(trace_id) / 2**256
    return [math.nextafter(nearest, 0.0), nearest, math.nextafter(nearest, 1.0)]


@given(rates)
@example(0.0)
@example(1.0)
@example(5e-324)
@example(1e-12)
@example(math.nextafter(1.0, 0.0))
@settings(max_examples=20, deadline=None)
def test_spark_and_python_draw_the_same_sample(spark: SparkResource, rate: float) -> None:
    ids = IDS + HOSTILE_IDS

    assert sorted(spark_samples(spark, ids, rate)) == sorted(
        trace_id for trace_id in ids if in_sample(trace_id, NAME, rate)
    )


@pytest.mark.parametrize("trace_id", IDS[:5])
def test_spark_and_python_agree_at_the_exact_draw(spark: SparkResource, trace_id: str) -> None:
    around = neighbours_of_a_draw(trace_id)

    assert [bool(spark_samples(spark, [trace_id], rate)) for rate in around] == [
        in_sample(trace_id, NAME, rate) for rate in around
    ]
    assert [in_sample(trace_id, NAME, rate) for rate in (around[0], around[-1])] == [False, True]


@pytest.mark.parametrize("rate", RATES)
def test_the_share_drawn_is_the_rate(rate: float) -> None:
    count = sum(in_sample(f"trace {number}", NAME, rate) for number in range(100_000))

    low, high = stats.binom.interval(0.999, 100_000, rate)
    assert low <= count <= high
