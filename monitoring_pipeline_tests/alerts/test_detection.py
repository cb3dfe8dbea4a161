"""Detection of changes: fewer false alarms than configured, and incidents detected within their hour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitoring_pipeline.alerts.detection import Floats, by_week, false_alarm_chance, level_change, rate_change

WEEKS, DAYS = 4, 90
PAST = WEEKS * 168
PER_30_DAYS = 0.3


class Traffic:
    """Hours of traffic, rate and duration with a daily and a weekly rhythm, and variation beyond chance."""

    def __init__(self, seed: int, hours: int, mean: int = 200, rate: float = 0.04, correlation: float = 0.003):
        self.random = np.random.default_rng(seed)
        hour = np.arange(hours)
        weekend = (hour // 24) % 7 >= 5
        wave = np.sin(2 * np.pi * hour / 24)
        traces = self.random.poisson(mean * (1 + 0.7 * wave) * np.where(weekend, 0.5, 1))
        self.total: Floats = (traces + 1).astype(float)
        self.usual = centre = rate * (1 + 0.3 * wave) * np.where(weekend, 1.2, 1)
        weight = 1 / correlation - 1
        self.rate = self.random.beta(centre * weight, (1 - centre) * weight)
        self.marked: Floats = self.random.binomial(self.total.astype(int), self.rate).astype(float)
        # The variation of a 95th percentile of so many log-normal durations, and of the day
        error = self.random.normal(0, 1.27 / np.sqrt(self.total)) + self.random.normal(0, 0.05, hours)
        self.p95_ms: Floats = np.exp(8 + 0.2 * wave + np.where(weekend, 0.1, 0) + error)


def p_of_rate(traffic: Traffic, hour: int, marked: float, total: float) -> float:
    series: tuple[Floats, Floats] = (traffic.marked, traffic.total)
    past = [by_week(values[hour - PAST : hour + 1], WEEKS, 1)[0][:, :, 0] for values in series]
    change = rate_change(marked, total, past[0], past[1], "up")
    assert change is not None
    return change.p_value


def p_of_level(traffic: Traffic, hour: int, value: float) -> float:
    change = level_change(value, by_week(traffic.p95_ms[hour - PAST : hour + 1], WEEKS, 1)[0][:, :, 0], 24, "up")
    assert change is not None
    return change.p_value


@pytest.mark.parametrize("seed", [1, 2])
def test_a_rate_raises_fewer_false_alarms_than_configured_in_ninety_normal_days(seed: int) -> None:
    traffic = Traffic(seed, PAST + DAYS * 24)
    alpha = false_alarm_chance(PER_30_DAYS, checks_a_day=288)

    p_values = np.array(
        [p_of_rate(traffic, hour, traffic.marked[hour], traffic.total[hour]) for hour in range(PAST, PAST + DAYS * 24)]
    )

    assert (p_values < alpha).sum() < PER_30_DAYS * DAYS / 30
    # Few alarms because chance is estimated well, not because the test is insensitive.
    assert 0.3 < (p_values < 0.05).mean() / 0.05 < 1.2


@pytest.mark.parametrize("seed", [1, 2])
def test_a_level_raises_fewer_false_alarms_than_configured_in_ninety_normal_days(seed: int) -> None:
    traffic = Traffic(seed, PAST + DAYS * 24)
    alpha = false_alarm_chance(PER_30_DAYS, checks_a_day=24)

    p_values = np.array([p_of_level(traffic, hour, traffic.p95_ms[hour]) for hour in range(PAST, PAST + DAYS * 24)])

    assert (p_values < alpha).sum() < PER_30_DAYS * DAYS / 30
    assert 0.2 < (p_values < 0.05).mean() / 0.05 < 1.2


@pytest.mark.parametrize(("usual", "now"), [(0.04, 0.20), (0.10, 0.25)])  # errors; traces that do not pass
def test_an_incident_is_detected_within_its_hour(usual: float, now: float) -> None:
    alpha = false_alarm_chance(PER_30_DAYS, checks_a_day=288)
    seen = []
    for seed in range(40):
        traffic = Traffic(seed, PAST + 24, mean=600, rate=usual)
        hour = PAST + seed % 12  # the busy half of a weekday
        total = int(traffic.total[hour])
        seen.append(
            p_of_rate(traffic, hour, traffic.random.binomial(total, traffic.usual[hour] + now - usual), total) < alpha
        )

    assert np.mean(seen) >= 0.9


def test_a_doubled_duration_is_detected() -> None:
    traffic = Traffic(5, PAST + 24)

    assert p_of_level(traffic, PAST + 6, 2 * traffic.p95_ms[PAST + 6]) < false_alarm_chance(PER_30_DAYS, 24)


@given(
    marked=st.integers(0, 60),
    more=st.integers(0, 60),
    share=st.floats(0.02, 0.6),
)
def test_with_a_long_constant_past_the_test_equals_the_binomial_test(marked: int, more: int, share: float) -> None:
    total = marked + more + 1
    past_total = np.full((4, 168), 1e6)

    change = rate_change(marked, total, past_total * share, past_total, "up")

    assert change is not None
    exact = stats.binomtest(marked, total, share, alternative="greater").pvalue
    assert change.p_value == pytest.approx(exact, rel=0.02, abs=1e-7)


@given(factor=st.floats(1e-3, 1e3))
def test_the_test_of_a_level_does_not_depend_on_its_unit(factor: float) -> None:
    past = np.exp(np.random.default_rng(3).normal(0, 0.1, (4, 168)))
    one, other = level_change(1.5, past, 24, "both"), level_change(1.5 * factor, past * factor, 24, "both")

    assert one is not None and other is not None
    assert other.p_value == pytest.approx(one.p_value, rel=1e-6)


def test_the_same_change_is_more_significant_if_the_past_varies_less() -> None:
    total = np.full((4, 168), 500.0)
    rates = np.clip(np.random.default_rng(2).normal(0.1, 0.04, (4, 168)), 0.001, 1)
    even = rate_change(85, 500, total * 0.1, total, "up")
    uneven = rate_change(85, 500, (total * rates).round(), total, "up")

    assert even is not None and uneven is not None
    assert even.p_value < 1e-4 < 1e-2 < uneven.p_value


@pytest.mark.parametrize("weeks_with_traces", [0, 2])
def test_with_fewer_than_three_weeks_there_is_no_result(weeks_with_traces: int) -> None:
    total = np.zeros((4, 168))
    total[:weeks_with_traces] = 100
    assert rate_change(50, 100, total * 0.1, total, "up") is None
    assert level_change(50.0, np.where(total > 0, total, np.nan), 24, "up") is None


def test_compared_windows_start_at_the_same_hour_of_the_same_weekday() -> None:
    hours = np.arange(4 * 168 + 6, dtype=float)
    past, last = by_week(hours, 4, 6)
    assert last.tolist() == [672, 673, 674, 675, 676, 677]
    assert past[:, 0, 0].tolist() == [0, 168, 336, 504]
    assert ((last[0] - past[:, 0, 0]) % 168 == 0).all()
