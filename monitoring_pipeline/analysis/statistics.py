"""Statistics of sampled scores: means with intervals that know how much of the population was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import variance

CONFIDENCE = 0.95


def mean_interval(scores: Sequence[float], population: int) -> tuple[float, float] | None:
    """The 95 % interval of a population's mean, from a simple random sample of it without replacement.

    `population` counts the sampled traces and those they stand for. A complete sample has no uncertainty: both bounds
    are its mean. None without a score, and where one score other than 0 or 1 is known of several traces, which says
    nothing of their spread.

    Source: W. G. Cochran, Sampling Techniques, 3rd ed., 1977: eq. 2.20 with Student's t for means. Where all scores are
    0 or 1, E. B. Wilson's score interval (JASA 22, 1927), with n (N - 1) / (N - n) for n, which has the variance of
    Cochran's eq. 3.8; t breaks down near 0 and 1.
    """
    from scipy import stats

    count = len(scores)
    if count == 0:
        return None
    mean = sum(scores) / count
    if count >= population:
        return mean, mean
    if all(score in (0, 1) for score in scores):
        effective = count * (population - 1) / (population - count)
        return _wilson(mean, effective, float(stats.norm.ppf((1 + CONFIDENCE) / 2)))
    if count == 1:
        return None
    error = math.sqrt(variance(scores, mean) / count * (1 - count / population))
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return mean - margin, mean + margin


def _wilson(share: float, count: float, z: float) -> tuple[float, float]:
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    margin = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)
