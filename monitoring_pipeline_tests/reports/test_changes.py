from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.analysis.statistics import Estimate, difference_bounds
from monitoring_pipeline.reports.changes import Change, changes
from monitoring_pipeline.reports.estimates import mean_of, share
from monitoring_pipeline_tests.reports.frames import (
    DAY_BEFORE,
    PERIOD,
    SCORE_COLUMNS,
    TOTAL_COLUMNS,
    WEEK_BEFORE,
    columns,
    empty_day,
    incident_day,
    score_row,
    total_row,
)

ROW = {"input_tokens": 8, "output_tokens": 2, "total_tokens": 10}


def hours(traces: int, errors: int, p95: float = 1000.0, cost: float = 1.0) -> list[dict]:
    return [{**ROW, "trace_count": traces, "error_count": errors, "p95_duration_ms": p95, "cost_usd": cost}]


def compared(own: list[dict], before: list[dict], **frames: object) -> dict[str, Change]:
    """The changes of all traces against the day before, by measure."""
    rows = [total_row(PERIOD.name, None, own), total_row(DAY_BEFORE, None, before)]
    found = changes(replace(empty_day(), totals=columns(rows, TOTAL_COLUMNS), **frames))
    return {change.measure: change for change in found}


def test_more_errors_are_worse_beyond_noise() -> None:
    change = compared(hours(1000, 80), hours(1000, 30))["error_rate"]
    assert (change.value, change.before, change.amount) == (0.08, 0.03, pytest.approx(0.05))
    assert (change.beyond_noise, change.better) == (True, False)
    assert (change.against, change.against_label) == (DAY_BEFORE, "the day before")
    back = compared(hours(1000, 30), hours(1000, 80))["error_rate"]
    assert (back.beyond_noise, back.better) == (True, True)
    assert (back.low, back.high) == (pytest.approx(-(change.high or 0)), pytest.approx(-(change.low or 0)))


def test_a_difference_by_chance_is_within_noise() -> None:
    assert compared(hours(100, 5), hours(100, 3))["error_rate"].beyond_noise is False


# R. G. Newcombe, Statistics in Medicine 17, 1998, table II, method 10: 56/70 against 48/80, at 95 %
def test_the_interval_of_a_difference_of_shares_equals_newcombes() -> None:
    first, second = Estimate(0.8, 0.6919, 0.8777), Estimate(0.6, 0.4904, 0.7004)
    assert difference_bounds(first, second) == pytest.approx((0.0524, 0.3339), abs=2e-3)


def test_latency_and_cost_are_compared_by_their_ratio() -> None:
    found = compared(hours(1000, 0, p95=2000, cost=2.0), hours(1000, 0, p95=1000, cost=1.0))
    latency, cost = found["p95_duration_ms"], found["cost_per_trace_usd"]
    assert (latency.amount, latency.better, latency.beyond_noise) == (2.0, False, True)
    # bounds of 10 % on either side of both
    apart = math.hypot(math.log(1.0 / 0.9), math.log(1.1))
    assert latency.low == pytest.approx(2 * math.exp(-apart))
    assert cost.amount == 2.0
    assert cost.better is False


def test_traffic_has_no_good_direction_and_is_not_compared_before_the_day_ends() -> None:
    assert compared(hours(1000, 0), hours(500, 0))["trace_count"].better is None
    assert "trace_count" not in compared(hours(1000, 0), hours(500, 0), is_complete=False)


def test_too_few_traces_are_compared_without_a_verdict() -> None:
    own, before = total_row(PERIOD.name, None, hours(30, 0)), total_row(DAY_BEFORE, None, hours(30, 0, p95=500))
    rows = [row | {"p95_low": None, "p95_high": None} for row in (own, before)]
    found = changes(replace(empty_day(), totals=columns(rows, TOTAL_COLUMNS)))
    [latency] = [change for change in found if change.measure == "p95_duration_ms"]
    assert (latency.amount, latency.beyond_noise) == (2.0, None)


def test_without_an_earlier_day_nothing_is_compared() -> None:
    data = incident_day()
    alone = replace(
        data,
        totals=data.totals[data.totals["period"] == PERIOD.name],
        scores=data.scores[data.scores["period"] == PERIOD.name],
    )
    assert changes(alone) == []


def test_a_scorer_is_compared_only_with_itself() -> None:
    rows = [
        score_row(PERIOD.name, "1", "polite", 1000, 0.90),
        score_row(DAY_BEFORE, "1", "polite", 1000, 0.97),
        score_row(WEEK_BEFORE, "1", "polite", 1000, 0.97) | {"scorer_digest": "another"},
        score_row(DAY_BEFORE, "2", "polite", 1000, 0.5),
    ]
    found = changes(replace(empty_day(), scores=columns(rows, SCORE_COLUMNS)))
    assert [(c.measure, c.against, c.experiment_id, c.better, c.beyond_noise) for c in found] == [
        ("pass_rate", DAY_BEFORE, "1", False, True),
        ("mean_score", DAY_BEFORE, "1", None, True),
    ]


def test_scores_of_a_single_value_have_no_spread() -> None:
    assert mean_of(50, 0.5, 0.0) is None
    assert mean_of(1, 0.5, math.nan) is None


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_a_share_lies_in_its_interval(count: int, part: float) -> None:
    estimate = share(round(part * count), count)
    assert 0 <= estimate.low <= estimate.value + 1e-12 and estimate.value - 1e-12 <= estimate.high <= 1


def test_two_equal_days_differ_beyond_noise_about_once_in_a_hundred() -> None:
    """The stated confidence, by simulation: error rates, mean scores and counts of days that do not differ."""
    random, days = np.random.default_rng(11), 3000
    rates = random.binomial(400, 0.05, (days, 2))
    scores = random.beta(8, 2, (days, 2, 60))
    apart = {"error_rate": 0, "mean_score": 0, "count": 0}
    counts = random.poisson(500, (days, 2))
    for day in range(days):
        apart["error_rate"] += _leaves_out_0(*(share(int(n), 400) for n in rates[day]))
        means = (mean_of(60, float(s.mean()), float(s.var(ddof=1))) for s in scores[day])
        apart["mean_score"] += _leaves_out_0(*(mean for mean in means if mean))
        totals = pd.DataFrame({"trace_count": counts[day]})
        apart["count"] += abs(math.log(totals["trace_count"][0] / totals["trace_count"][1])) > 2.5758 * math.hypot(
            *(1 / math.sqrt(n) for n in counts[day])
        )
    for measure, times in apart.items():
        assert 0.002 < times / days < 0.018, measure


def _leaves_out_0(one: Estimate, other: Estimate) -> bool:
    low, high = difference_bounds(one, other)
    return not low <= 0 <= high
