"""Statistics: intervals of shares, quantiles and their differences, and agreement of verdicts."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
FEWEST_BEYOND = 10  # minimum values on either side of a quantile for its interval to reach its nominal coverage


def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t distribution."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    return float(stdtrit(freedom, probability))


def share_interval(successes: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of a probability from independent trials (at least one), by E. B. Wilson (JASA 22, 1927)."""
    return wilson(successes / trials, trials, NormalDist().inv_cdf((1 + confidence) / 2))


def wilson(share: float, count: float, z: float = Z) -> tuple[float, float]:
    """The interval of a probability whose share among `count` independent trials (not necessarily whole) is `share`."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    margin = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)


class Estimate(NamedTuple):
    """A value and the bounds of its interval."""

    value: float
    low: float
    high: float


def difference_bounds(value: Estimate, before: Estimate) -> tuple[float, float]:
    """The interval of value - before at the confidence of their intervals; the two must be independent.

    Source: G. Y. Zou and A. Donner, Statistics in Medicine 27, 2008; for two Wilson intervals it equals R. G.
    Newcombe's method 10 (Statistics in Medicine 17, 1998, p. 873).
    """
    middle = value.value - before.value
    low = middle - math.hypot(value.value - value.low, before.high - before.value)
    return low, middle + math.hypot(value.high - value.value, before.value - before.low)


class Difference(NamedTuple):
    """Second minus first, and the bounds of its 95 % interval; None without an interval."""

    value: float
    low: float | None
    high: float | None


def share_difference(first: tuple[int, int], second: tuple[int, int]) -> Difference:
    """The difference of two probabilities, each given as (successes, independent trials) with at least one trial.

    Source: R. G. Newcombe's method 10, see `difference_bounds`.
    """
    before, value = (Estimate(marked / trials, *share_interval(marked, trials)) for marked, trials in (first, second))
    return Difference(value.value - before.value, *difference_bounds(value, before))


def quantile_difference(first: np.ndarray, second: np.ndarray, share: float) -> Difference:
    """The difference of the quantiles (0 < `share` < 1, linear interpolation) of two samples of independent values.

    No bounds if a sample has fewer than 10 values on either side of its quantile; NaN if a sample is empty. The method
    assumes only that values lie densely around the quantile, and draws nothing at random. At the minimum number of
    values from a skewed distribution, the interval of a 95th percentile is slightly wide: it covers 96 to 97 %.

    Source: J. S. Maritz and R. G. Jarrett, JASA 73, 1978, for the variance of a quantile; the difference is taken as
    normal.
    """
    import numpy as np

    if not (len(first) and len(second)):
        return Difference(math.nan, None, None)
    value = float(np.quantile(second, share) - np.quantile(first, share))
    if min(len(first), len(second)) * min(share, 1 - share) < FEWEST_BEYOND - 1e-9:
        return Difference(value, None, None)
    margin = Z * math.sqrt(_quantile_variance(first, share) + _quantile_variance(second, share))
    return Difference(value, value - margin, value + margin)


def _quantile_variance(values: np.ndarray, share: float) -> float:
    """Maritz and Jarrett's estimate: variance of the values, weighted by their chance to be the quantile."""
    import numpy as np
    from scipy.special import betainc

    count = len(values)
    # The chance of ranks farther away is zero in floating point.
    reach = 8 * math.sqrt(count * share * (1 - share)) + 8
    first, last = max(0, math.floor(count * share - reach)), min(count, math.ceil(count * share + reach))
    ranks = np.arange(first, last + 1)
    chances = np.diff(betainc(share * (count + 1), (1 - share) * (count + 1), ranks / count))
    near = np.sort(values)[first:last]
    return float(chances @ (near - chances @ near) ** 2)


class Kappa(NamedTuple):
    """Cohen's kappa and the bounds of its 95 % interval; None if the counts do not determine them."""

    value: float | None
    low: float | None
    high: float | None


def cohen_kappa(pass_pass: int, pass_fail: int, fail_pass: int, fail_fail: int) -> Kappa:
    """Agreement beyond chance of two raters' verdicts on the same traces: 1 is complete, 0 is what chance yields.

    `pass_fail` counts the traces that the first rater passed and the second failed. No kappa if a rater gave only one
    kind of verdict: the formula is then 0, or 0 / 0, whatever the other rater's verdicts. No bounds if the standard
    error is 0, as for complete agreement: such counts do not show the effect of chance. Traces count as independent.

    Source: J. Cohen, Educational and Psychological Measurement 20, 1960; the large-sample standard error of J. L.
    Fleiss, J. Cohen and B. S. Everitt, Psychological Bulletin 72, 1969. The bounds are cut off at -1 and 1.
    """
    total = pass_pass + pass_fail + fail_pass + fail_fail
    totals = ((pass_pass + pass_fail, fail_pass + fail_fail), (pass_pass + fail_pass, pass_fail + fail_fail))
    if any(0 in of_rater for of_rater in totals):
        return Kappa(None, None, None)
    # Fractions, so that a standard error of 0 is exactly 0.
    same = (Fraction(pass_pass, total), Fraction(fail_fail, total))
    other = (Fraction(pass_fail, total), Fraction(fail_pass, total))
    first, second = ([Fraction(count, total) for count in of_rater] for of_rater in totals)
    chance = first[0] * second[0] + first[1] * second[1]
    kappa = (sum(same) - chance) / (1 - chance)
    spread = (
        sum(same[i] * (1 - (first[i] + second[i]) * (1 - kappa)) ** 2 for i in (0, 1))
        + (1 - kappa) ** 2 * sum(other[i] * (second[i] + first[1 - i]) ** 2 for i in (0, 1))
        - (kappa - chance * (1 - kappa)) ** 2
    )
    if spread == 0:
        return Kappa(float(kappa), None, None)
    error = math.sqrt(spread / total) / (1 - chance)
    margin = Z * error
    return Kappa(float(kappa), max(-1.0, float(kappa) - margin), min(1.0, float(kappa) + margin))
