"""Intervals of means, differences and kappa: their formulas, their limits and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import approx_fprime
from sklearn.metrics import cohen_kappa_score

from monitoring_pipeline.analysis.statistics import (
    Kappa,
    cohen_kappa,
    quantile_difference,
    share_difference,
    share_interval,
)

SEED = 20260101
scores = st.lists(st.floats(-1e3, 1e3).map(lambda score: round(score, 3)), min_size=2, max_size=40)
passes = st.lists(st.booleans().map(float), min_size=1, max_size=40)


# ---- kappa ----

VERDICTS = ((True, True), (True, False), (False, True), (False, False))
NO_KAPPA = Kappa(None, None, None)
counts = st.tuples(*[st.integers(0, 60)] * 4)


def kappa_of_shares(shares: np.ndarray) -> float:
    """Cohen's kappa of a table's shares, in the order of `VERDICTS`."""
    table = shares.reshape(2, 2)
    chance = table.sum(axis=1) @ table.sum(axis=0)
    return (np.trace(table) - chance) / (table.sum() - chance)


@given(counts)
def test_kappa_equals_scikit_learns(counts: tuple[int, int, int, int]) -> None:
    pairs = [pair for pair, count in zip(VERDICTS, counts, strict=True) for _ in range(count)]
    both_varied = all(len(set(verdicts)) == 2 for verdicts in zip(*pairs, strict=True)) and pairs

    kappa = cohen_kappa(*counts)

    if both_varied:
        assert kappa.value == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)), abs=1e-12)
    else:
        assert kappa == NO_KAPPA


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (9, 0, 0, 0), (0, 4, 0, 0), (5, 5, 0, 0), (0, 3, 0, 9), (1, 0, 1, 0)])
def test_kappa_of_a_single_verdict_is_undefined(counts: tuple[int, int, int, int]) -> None:
    assert cohen_kappa(*counts) == NO_KAPPA


@given(counts)
def test_the_interval_of_kappa_equals_that_of_the_delta_method(counts: tuple[int, int, int, int]) -> None:
    # Fleiss, Cohen and Everitt's formula is the delta method's variance, which a numerical gradient gives as well.
    kappa = cohen_kappa(*counts)
    assume(kappa.low is not None and kappa.high is not None)
    shares = np.array(counts) / sum(counts)
    gradient = approx_fprime(shares, kappa_of_shares, 1e-7)
    variance = gradient @ (np.diag(shares) - np.outer(shares, shares)) @ gradient / sum(counts)

    low, high = stats.norm.interval(0.95, kappa.value, math.sqrt(variance))

    assert (kappa.low, kappa.high) == pytest.approx((max(-1, low), min(1, high)), abs=1e-4)


@pytest.mark.parametrize("counts", [(7, 0, 0, 1), (150, 0, 0, 150), (0, 5, 5, 0)])
def test_perfect_agreement_has_a_kappa_and_no_interval(counts: tuple[int, int, int, int]) -> None:
    kappa = cohen_kappa(*counts)

    assert (abs(kappa.value or 0), kappa.low, kappa.high) == (1, None, None)


@given(counts)
def test_kappa_does_not_depend_on_which_rater_or_verdict_is_first(counts: tuple[int, int, int, int]) -> None:
    both, first_only, second_only, neither = counts

    assert cohen_kappa(*counts) == cohen_kappa(both, second_only, first_only, neither)
    assert cohen_kappa(*counts) == cohen_kappa(neither, first_only, second_only, both)


@given(counts)
def test_bounds_of_kappa_are_kappas_around_it(counts: tuple[int, int, int, int]) -> None:
    kappa = cohen_kappa(*counts)
    assume(kappa.low is not None)
    known = [bound for bound in (kappa.low, kappa.value, kappa.high) if bound is not None]

    assert [-1, *known, 1] == sorted([-1, *known, 1])
    assert len(known) == 3
    assert known[0] < known[2]


@pytest.mark.parametrize(
    "shares",
    [
        (0.4, 0.1, 0.1, 0.4),
        (0.25, 0.25, 0.25, 0.25),
        (0.6, 0.1, 0.05, 0.25),
        (0.7, 0.1, 0.1, 0.1),
        (0.3, 0.3, 0.1, 0.3),
    ],
    ids=str,
)
def test_kappa_is_covered_about_95_times_in_100(shares: tuple[float, ...]) -> None:
    # 4,000 tables of 300 traces add 1 point (three standard errors).
    truth = kappa_of_shares(np.array(shares))
    tables = np.random.default_rng(SEED).multinomial(300, shares, size=4000).tolist()

    bounds = [(kappa.low, kappa.high) for kappa in (cohen_kappa(*table) for table in tables)]
    covered = np.mean([low <= truth <= high for low, high in bounds if low is not None and high is not None])

    assert covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (681, 90_000)])
def test_shares_have_scipys_wilson_interval(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")

    assert share_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Newcombe 1998, table II, method 10; there the first less the second
        ((48, 80), (56, 70), (0.2000, 0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.6000, 0.1705, 0.8090)),
        ((2, 7), (6, 7), (0.5714, 0.0582, 0.8062)),
        ((0, 29), (5, 56), (0.0893, -0.0381, 0.1926)),
        ((0, 20), (0, 10), (0.0000, -0.1611, 0.2775)),
        ((0, 10), (10, 10), (1.0000, 0.6075, 1.0000)),
    ],
)
def test_differences_of_shares_are_newcombes(
    first: tuple[int, int], second: tuple[int, int], expected: tuple[float, ...]
) -> None:
    difference = share_difference(first, second)
    assert difference == pytest.approx(expected, abs=5e-5)
    value, low, high = expected
    assert share_difference(second, first) == pytest.approx((-value, -high, -low), abs=5e-5)


@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.1, 0.2), (0.5, 0.5), (0.03, 0.1)])
def test_differences_of_shares_are_covered_95_times_in_100(shares: tuple[float, float]) -> None:
    # Exact, over all possible results of 200 and 240 trials.
    counts = (200, 240)
    chances = np.outer(*(stats.binom.pmf(np.arange(n + 1), n, p) for n, p in zip(counts, shares, strict=True)))
    truth = shares[1] - shares[0]

    covered = 0.0
    for (i, j), chance in np.ndenumerate(chances):
        if chance > 1e-9:
            _, low, high = share_difference((i, counts[0]), (j, counts[1]))
            assert low is not None
            assert high is not None
            covered += chance * (low <= truth <= high)

    assert covered == pytest.approx(0.95, abs=0.01)


DISTRIBUTIONS = {"lognormal": stats.lognorm(0.8), "exponential": stats.expon(), "normal": stats.norm(50, 9)}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("share", "counts"), [(0.5, (60, 90)), (0.95, (900, 600))])
def test_differences_of_quantiles_are_covered_95_times_in_100(name: str, share: float, counts: tuple[int, int]) -> None:
    # 3,000 pairs of samples add 0.8 points (two standard errors).
    drawn = (DISTRIBUTIONS[name].rvs((3000, count), np.random.default_rng(SEED + count)) for count in counts)
    shift = 7.0  # how much slower the second release is

    bounds = [quantile_difference(first, second + shift, share) for first, second in zip(*drawn, strict=True)]
    covered = np.mean([low <= shift <= high for _, low, high in bounds if low is not None and high is not None])

    assert len(bounds) == 3000
    assert covered == pytest.approx(0.95, abs=0.01 + 0.008)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_width_equals_that_of_maritz_jarrett_standard_errors(share: float) -> None:
    # scipy weighs by the beta distribution of the nearest rank, and so differs a little.
    random = np.random.default_rng(SEED)
    first, second = random.exponential(size=700), random.exponential(size=900)
    error = math.hypot(*(float(stats.mstats.mjci(sample, [share])[0]) for sample in (first, second)))

    value, low, high = quantile_difference(first, second, share)

    assert value == pytest.approx(np.quantile(second, share) - np.quantile(first, share))
    assert low is not None
    assert high is not None
    assert high - value == pytest.approx(value - low) == pytest.approx(stats.norm.ppf(0.975) * error, rel=0.1)


@pytest.mark.parametrize(
    ("counts", "share", "known"),
    [((20, 20), 0.5, True), ((19, 500), 0.5, False), ((200, 200), 0.95, True), ((500, 199), 0.95, False)],
)
def test_too_few_values_have_a_difference_and_no_bounds(counts: tuple[int, int], share: float, known: bool) -> None:
    first, second = (np.arange(float(count)) for count in counts)
    value, low, high = quantile_difference(first, second, share)
    assert value == pytest.approx((counts[1] - counts[0]) * share)
    assert (low is not None, high is not None) == (known, known)


def test_without_values_the_difference_is_unknown() -> None:
    value, low, high = quantile_difference(np.array([]), np.arange(50.0), 0.5)
    assert math.isnan(value)
    assert (low, high) == (None, None)


def test_equal_values_have_a_difference_of_zero() -> None:
    assert quantile_difference(np.full(50, 3.0), np.full(60, 3.0), 0.5) == pytest.approx((0, 0, 0))
