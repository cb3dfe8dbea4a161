"""Statistics of sampled scores: means with intervals that know how much of the population was seen."""

from __future__ import annotations

import math

CONFIDENCE = 0.95


def mean_interval(
    count: int, mean: float, variance: float, population: int, binary: bool
) -> tuple[float, float] | None:
    """The 95 % interval of a population's mean, from a simple random sample without replacement.

    `variance` is the sample's, with n - 1; `population` counts the sampled traces and those they stand for; `binary`
    says that every score is 0 or 1. A complete sample has no uncertainty: both bounds are the mean. None where one
    score alone is known of several, which says nothing of their spread.

    Source: W. G. Cochran, Sampling Techniques, 3rd ed., 1977: eq. 2.20 with Student's t for means. Proportions: E. B.
    Wilson's score interval (JASA 22, 1927), with n (N - 1) / (N - n) for n, which has the variance of eq. 3.8.
    """
    from scipy import stats

    if count >= population:
        return mean, mean
    if binary:
        effective = count * (population - 1) / (population - count)
        return _wilson(mean, effective, float(stats.norm.ppf((1 + CONFIDENCE) / 2)))
    if count < 2:
        return None
    error = math.sqrt(variance / count * (1 - count / population))
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return mean - margin, mean + margin


def _wilson(share: float, count: float, z: float) -> tuple[float, float]:
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    margin = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)
