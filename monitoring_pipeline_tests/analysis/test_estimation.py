"""Figures of samples: their formulas against scipy, their coverage in simulations, and their limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitoring_pipeline.analysis.estimation import (
    LONGEST_BET,
    Scale,
    Stratum,
    bounded_mean_interval,
    figure,
    rate_interval,
)

SEED = 20260101
LIKERT: Scale = (1.0, 5.0)
Draw = Callable[[np.random.Generator, float, int], np.ndarray]
shares = st.lists(st.integers(0, 20).map(lambda score: score / 20), max_size=12)
hours = st.lists(st.tuples(shares, st.integers(0, 50), st.integers(0, 3), st.sampled_from([0.1, 1.0])), max_size=6)


def passes(rng: np.random.Generator, share: float, count: int) -> np.ndarray:
    return (rng.random(count) < share).astype(float)


def opinions(rng: np.random.Generator, share: float, count: int) -> np.ndarray:
    """Scores from 1 to 5, mostly high."""
    return rng.choice([1, 2, 3, 4, 5], p=[0.02, 0.03, 0.1, 0.25, 0.6], size=count).astype(float)


# Rates


def chances(passed: int, sampled: int, passing: int, population: int) -> tuple[float, float]:
    """The mid-p chances of at least and of at most `passed`, by scipy."""
    of = stats.hypergeom(population, passing, sampled)
    return float(of.sf(passed) + of.pmf(passed) / 2), float(of.cdf(passed - 1) + of.pmf(passed) / 2)


@pytest.mark.parametrize(("passed", "sampled", "population"), [(0, 1, 2), (3, 4, 10), (19, 20, 21), (48, 50, 700)])
def test_a_rate_has_the_shares_that_the_hypergeometric_test_keeps(passed: int, sampled: int, population: int) -> None:
    kept = [
        passing / population
        for passing in range(passed, population - sampled + passed + 1)
        if min(chances(passed, sampled, passing, population)) > 0.025
    ]
    assert rate_interval(passed, sampled, population) == (kept[0], kept[-1])


def test_rates_cover_whatever_the_true_share() -> None:
    population, sampled = 40, 12
    bounds = [rate_interval(passed, sampled, population) for passed in range(sampled + 1)]
    covered = [
        sum(
            stats.hypergeom(population, passing, sampled).pmf(passed)
            for passed, (low, high) in enumerate(bounds)
            if low <= passing / population <= high
        )
        for passing in range(population + 1)
    ]
    assert np.mean(covered) > 0.95
    assert min(covered) > 0.91  # mid-p values hold on average


def test_nineteen_of_twenty_one_leave_two_possible_truths() -> None:
    found = figure([Stratum([1.0] * 19 + [0.0], 21)])
    assert found
    assert (found.low, found.high) == (19 / 21, 20 / 21)


# Means of bounded scores


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_a_mean_of_few_scores_is_covered_and_stays_on_the_scale(count: int) -> None:
    rng, covered = np.random.default_rng(SEED), 0
    for _ in range(200):
        everything = opinions(rng, 0, 300)
        low, high = bounded_mean_interval([*rng.permutation(everything)[:count]], 300, LIKERT)
        assert LIKERT[0] <= low <= high <= LIKERT[1]
        covered += low <= everything.mean() <= high
    assert covered >= 190


def test_equal_scores_of_few_traces_say_little() -> None:
    found = figure([Stratum([0.7, 0.7], 1000)])
    assert found
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.1
    assert found.high > 0.9


def test_most_of_a_small_population_says_much() -> None:
    low, high = bounded_mean_interval([0.5] * 19, 20, (0.0, 1.0))
    assert low == pytest.approx(9.5 / 20, abs=0.01)
    assert high == pytest.approx(10.5 / 20, abs=0.01)


def test_the_interval_does_not_depend_on_the_order_of_scores() -> None:
    scores = [*np.random.default_rng(SEED).random(30)]
    assert bounded_mean_interval(scores, 100, (0.0, 1.0)) == bounded_mean_interval(scores[::-1], 100, (0.0, 1.0))


def test_many_scores_have_students_interval() -> None:
    scores = [*np.random.default_rng(SEED).random(LONGEST_BET + 1)]
    found, error = figure([Stratum(scores, 1000)]), stats.sem(scores) * (1 - len(scores) / 1000) ** 0.5
    assert found
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(0.95, len(scores) - 1, loc=np.mean(scores), scale=error)
    )


# Ranges


def day(
    rng: np.random.Generator, draw: Draw, share: Sequence[float], rates: Sequence[float]
) -> tuple[list[Stratum], float]:
    """The strata of a day of 60 traces an hour, and the true mean."""
    everything = [draw(rng, of_hour, 60) for of_hour in share]
    strata = [
        Stratum([*scores[rng.random(60) < rate]], 60, 0, rate) for scores, rate in zip(everything, rates, strict=True)
    ]
    return strata, float(np.mean(everything))


FALL = [0.95] * 12 + [0.80] * 12


@pytest.mark.parametrize(
    ("draw", "share", "rates", "scale"),
    [
        pytest.param(passes, FALL, [0.1] * 12 + [1.0] * 12, None, id="the rate is raised while quality falls"),
        pytest.param(passes, FALL, [1.0] * 12 + [0.1] * 12, None, id="the rate is lowered while quality falls"),
        pytest.param(passes, FALL, [0.1] * 12 + [0.4] * 12, None, id="two low rates"),
        pytest.param(passes, [0.97] * 24, [0.1] * 24, None, id="a low rate"),
        pytest.param(opinions, [0.0] * 24, [0.1] * 12 + [0.5] * 12, LIKERT, id="opinions"),
        pytest.param(opinions, [0.0] * 24, [0.03] * 24, LIKERT, id="opinions on a trace or two an hour"),
    ],
)
def test_days_are_covered_as_often_as_stated(
    draw: Draw, share: list[float], rates: list[float], scale: Scale | None
) -> None:
    rng, covered, days = np.random.default_rng(SEED), 0, 600
    for _ in range(days):
        strata, truth = day(rng, draw, share, rates)
        # Only hours with scores count; without one, an hour's traces are not in the truth either.
        found = figure(strata, scale)
        assert found
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / days <= 0.97


def test_an_hour_counts_by_its_traces() -> None:
    found = figure([Stratum([1.0], 30, 0, 0.1), Stratum([0.0] * 10, 10)])
    assert found
    assert (found.mean, found.population) == (0.75, 40)


def test_hours_without_scores_are_named_and_not_filled() -> None:
    found = figure([Stratum([1.0] * 5, 5), Stratum([], 1000), Stratum([0.0] * 5, 5)])
    assert found
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    assert (found.population, found.covered, found.hours) == (10, 2, 3)


def test_a_complete_sample_has_no_width() -> None:
    found = figure([Stratum([0.25, 0.5], 2), Stratum([1.0], 1)])
    assert found
    assert (found.low, found.high) == (found.mean, found.mean)


# Results that are errors


def test_errors_on_failing_traces_are_allowed_for() -> None:
    rng, covered = np.random.default_rng(SEED), 0
    for _ in range(200):
        strata, truths = [], []
        for _hour in range(24):
            scores = passes(rng, 0.9, 60)
            erring = (scores == 0) & (rng.random(60) < 0.3)
            strata.append(Stratum([*scores[~erring]], 60, int(erring.sum())))
            truths.append(scores.mean())
        found = figure(strata)
        assert found
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= np.mean(truths) <= found.high
    assert covered >= 190


def test_a_few_errors_change_nothing() -> None:
    with_errors, without = (figure([Stratum([1.0] * 90 + [0.0] * 9, 1000, failed)]) for failed in (2, 0))
    assert with_errors == without


def test_errors_on_an_unknown_scale_leave_no_bounds() -> None:
    scores = [*np.linspace(0, 300, 60)]
    with_errors, without = (figure([Stratum(scores, 1000, failed)]) for failed in (10, 0))
    assert with_errors
    assert without
    assert (with_errors.low, with_errors.high) == (None, None)
    assert without.low is not None


# Limits


@pytest.mark.parametrize("strata", [[], [Stratum([], 10)]])
def test_without_scores_there_is_no_figure(strata: list[Stratum]) -> None:
    assert figure(strata) is None


@pytest.mark.parametrize("scores", [[7.0], [3.0, 9.0], [0.5, 1.5] * 14])
def test_few_scores_on_an_unknown_scale_have_no_bounds(scores: list[float]) -> None:
    found = figure([Stratum(scores, 1000)])
    assert found
    assert (found.low, found.high) == (None, None)


@given(hours)
def test_bounds_lie_on_the_scale_and_around_the_mean(given_hours: list[tuple[list[float], int, int, float]]) -> None:
    found = figure([Stratum(scores, population, failed, rate) for scores, population, failed, rate in given_hours])
    if found is not None:
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.mean + 1e-9
        assert found.mean - 1e-9 <= found.high <= 1
