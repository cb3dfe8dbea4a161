"""Estimates of pass rates and mean scores from samples: intervals that stay on the scale, for hours and for ranges.

An hour's scored traces are a simple random sample of its traces: the sample is drawn by a hash of the trace id. A range
is a stratified sample, because rate, budget and traffic differ from hour to hour: each hour counts by its traces, not
by its scores.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import variance
from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.statistics import CONFIDENCE, t_quantile, wilson

if TYPE_CHECKING:
    import numpy as np

Scale = tuple[float, float]  # the lowest and the highest possible score
PASS_FAIL: Scale = (0.0, 1.0)
ALPHA = 1 - CONFIDENCE
NOTICEABLE = 0.02  # share of failed results from which on the bounds allow for what they would have been
LONGEST_BET = 200  # scores; from there on Student's t holds, and bets take longer
GRID = 1000
FEWEST_WITHIN = 10  # degrees of freedom within hours from which on their variance is used
FEWEST_FOR_T = 30  # scores without a scale


@dataclass(frozen=True)
class Stratum:
    """The scores of an hour, the traces that they stand for (with those scored), and the results that are errors.

    `rate` is the sample rate at which the traces were drawn.
    """

    scores: Sequence[float]
    population: int
    failed: int = 0
    rate: float = 1.0


@dataclass(frozen=True)
class Figure:
    """A mean and its 95 % interval; the bounds are None where nothing is known of them.

    It is that of the hours with scores: `population` traces, in `covered` of `hours`.
    """

    mean: float
    low: float | None
    high: float | None
    population: int
    covered: int
    hours: int


def figure(strata: Sequence[Stratum], scale: Scale | None = None) -> Figure | None:
    """The mean score of all traces of the hours that have scores; None without any score.

    `scale` bounds the scores; without it, 0 to 1 if no score lies outside. Where more than 2 % of an hour's results are
    errors, the bounds allow for any scores in their place. No bounds without a scale for fewer than 30 scores, or where
    errors are noticeable.

    Source: W. G. Cochran, Sampling Techniques, 3rd ed., 1977, chapter 5, for the mean and variance of a stratified
    sample. Each hour counts by its traces, so that a change of the sample rate within the range shifts nothing.
    """
    covered = [stratum for stratum in strata if len(stratum.scores)]
    if not covered:
        return None
    total = sum(_size(stratum) for stratum in covered)
    weights = [_size(stratum) / total for stratum in covered]
    mean = math.fsum(w * _mean(stratum.scores) for w, stratum in zip(weights, covered, strict=True))
    scores = [score for stratum in covered for score in stratum.scores]
    scale = scale or (PASS_FAIL if 0 <= min(scores) <= max(scores) <= 1 else None)
    bounds = _bounds(covered, mean, scores, scale)
    if bounds and scale and any(_is_noticeable(stratum) for stratum in covered):
        bounds = tuple(bound + _shift(covered, weights, end) for bound, end in zip(bounds, scale, strict=True))
    elif not scale and any(_is_noticeable(stratum) for stratum in covered):
        bounds = None
    low, high = bounds or (None, None)
    if scale and low is not None and high is not None:
        low, high = max(scale[0], low), min(scale[1], high)
    return Figure(mean, low, high, total, len(covered), len(strata))


def _bounds(
    strata: Sequence[Stratum], mean: float, scores: Sequence[float], scale: Scale | None
) -> tuple[float, ...] | None:
    if all(len(stratum.scores) >= stratum.population for stratum in strata):
        return mean, mean
    is_pass_fail = scale is not None and all(score in scale for score in scores)
    if len(strata) == 1:
        if is_pass_fail and scale:
            passed = sum(score == scale[1] for score in scores)
            return tuple(_on(scale, share) for share in rate_interval(passed, len(scores), strata[0].population))
        if scale and len(scores) <= LONGEST_BET:
            return bounded_mean_interval(scores, strata[0].population, scale)
    groups = _by_rate(strata, total=sum(map(_size, strata)))
    if is_pass_fail and scale:
        return _bounds_of_share(groups, mean, scale)
    if len(scores) < (2 if scale else FEWEST_FOR_T):
        return scale
    return _bounds_of_mean(groups, mean, variance(scores), len(scores))


@dataclass(frozen=True)
class _Group:
    """Hours that were sampled at about the same rate, their weight in the range, and their mean.

    `effective` is the number of independent scores whose mean would vary as much, infinite for complete samples.
    """

    strata: list[Stratum]
    weight: float
    mean: float
    effective: float


def _by_rate(strata: Sequence[Stratum], total: int) -> list[_Group]:
    """The hours grouped by their sample rate, those whose traces all have a score apart."""
    by_rate = defaultdict[tuple[bool, float], list[Stratum]](list)
    for stratum in strata:
        by_rate[len(stratum.scores) >= stratum.population, stratum.rate].append(stratum)
    return [_group(of_rate, total) for of_rate in by_rate.values()]


def _group(strata: list[Stratum], total: int) -> _Group:
    size = sum(map(_size, strata))
    weights = [_size(stratum) / size for stratum in strata]
    spread = math.fsum(
        w**2 / len(s.scores) * (1 - len(s.scores) / _size(s)) for w, s in zip(weights, strata, strict=True)
    )
    mean = math.fsum(w * _mean(s.scores) for w, s in zip(weights, strata, strict=True))
    return _Group(strata, size / total, mean, 1 / spread if spread else math.inf)


def _bounds_of_share(groups: Sequence[_Group], mean: float, scale: Scale) -> tuple[float, float]:
    """The interval of a mean of passes and fails: Wilson's of each group, combined.

    Source: G. Y. Zou, J. Huang and X. Zhang, Computational Statistics & Data Analysis 53, 2009, for the sum.
    """
    below = above = 0.0
    for group in groups:
        if math.isfinite(group.effective):
            share = (group.mean - scale[0]) / (scale[1] - scale[0])
            low, high = (_on(scale, bound) for bound in wilson(share, group.effective))
            below += (group.weight * (group.mean - low)) ** 2
            above += (group.weight * (high - group.mean)) ** 2
    return mean - math.sqrt(below), mean + math.sqrt(above)


def _bounds_of_mean(groups: Sequence[_Group], mean: float, of_all: float, count: int) -> tuple[float, float]:
    """The interval of a mean score by Student's t; `of_all` is the variance of all `count` scores.

    The variance of a group is that within its hours or, if most have a single score, that of all scores. The degrees of
    freedom are by F. E. Satterthwaite, Biometrics Bulletin 2, 1946.
    """
    parts: list[float] = []
    freedoms: list[int] = []
    for group in (group for group in groups if math.isfinite(group.effective)):
        several = [stratum.scores for stratum in group.strata if len(stratum.scores) > 1]
        freedom = sum(len(scores) - 1 for scores in several)
        within = math.fsum((len(scores) - 1) * variance(scores) for scores in several) / max(1, freedom)
        is_enough = freedom >= FEWEST_WITHIN
        parts.append(group.weight**2 * (within if is_enough else of_all) / group.effective)
        freedoms.append(freedom if is_enough else count - 1)
    spread = math.fsum(parts)
    if not spread:
        return mean, mean
    freedom = spread**2 / math.fsum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    margin = t_quantile(1 - ALPHA / 2, freedom) * math.sqrt(spread)
    return mean - margin, mean + margin


def rate_interval(passed: int, sampled: int, population: int) -> tuple[float, float]:
    """The 95 % interval of the share of `population` traces that pass, from a sample without replacement.

    Both bounds are possible shares. Source: inversion of the hypergeometric test with mid-p values; H. O. Lancaster,
    JASA 56, 1961, for the mid-p value, and W. Wang, Journal of Statistical Planning and Inference 160, 2015, for exact
    intervals of a finite population.
    """

    def tail(passing: int, at_least: bool) -> float:
        """The mid-p chance of at least, or at most, `passed` in the sample if so many of all traces pass."""
        below, exactly = _hypergeometric(passed, sampled, passing, population)
        return (1 - below - exactly if at_least else below) + exactly / 2

    lowest, highest = passed, population - (sampled - passed)
    low, high = lowest, highest
    while low < high:  # the fewest that make the sample likely enough
        middle = (low + high) // 2
        low, high = (low, middle) if tail(middle, at_least=True) > ALPHA / 2 else (middle + 1, high)
    fewest, low, high = low, low, highest
    while low < high:  # the most
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tail(middle, at_least=False) > ALPHA / 2 else (low, middle - 1)
    return fewest / population, low / population


def _hypergeometric(passed: int, sampled: int, passing: int, population: int) -> tuple[float, float]:
    """The chances of fewer than `passed`, and of exactly `passed`, among `sampled` of `population` traces."""
    import numpy as np
    from scipy.special import betaln

    found = np.arange(max(0, sampled - (population - passing)), passed + 1)
    if not len(found):
        return 0.0, 0.0

    def log_choose(total: np.ndarray | int, part: np.ndarray | int) -> np.ndarray:
        return -betaln(np.subtract(total, part) + 1, np.add(part, 1)) - np.log(np.add(total, 1))

    chances = np.exp(
        log_choose(passing, found) + log_choose(population - passing, sampled - found) - log_choose(population, sampled)
    )
    return float(chances[:-1].sum()), float(chances[-1])


def bounded_mean_interval(scores: Sequence[float], population: int, scale: Scale) -> tuple[float, float]:
    """The 95 % interval of the mean of `population` scores on the scale, from a sample without replacement.

    It holds for any distribution and any number of scores, so it is wide for few. The bets are placed in an order that
    does not depend on the scores; it is fixed, so that the same scores have the same interval.

    Source: I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86, 2024:
    the hedged capital process, predictable plug-in bets, section 5 for sampling without replacement.
    """
    import numpy as np

    width = scale[1] - scale[0]
    values = (np.sort(np.asarray(scores, float)) - scale[0]) / width
    values = np.random.default_rng(0).permutation(values)
    count = len(values)
    times = np.arange(1, count + 1)
    means = (0.5 + np.cumsum(values)) / (times + 1)
    spreads = (0.25 + np.cumsum((values - means) ** 2)) / (times + 1)
    bets = np.sqrt(2 * math.log(2 / ALPHA) / (count * np.concatenate([[0.25], spreads[:-1]])))
    candidates = np.linspace(0, 1, GRID + 1)
    seen = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    # The mean of the traces that are left if the candidate is the mean of all of them.
    left = (population * candidates[None, :] - seen[:, None]) / (population - times + 1)[:, None]
    possible = (left >= 0).all(axis=0) & (left <= 1).all(axis=0)
    possible &= population * candidates >= values.sum() - 1e-9
    possible &= population * (1 - candidates) >= (1 - values).sum() - 1e-9
    left = np.clip(left, 1e-9, 1 - 1e-9)
    gain = values[:, None] - left
    up = np.cumsum(np.log1p(np.minimum(bets[:, None], 0.5 / left) * gain), axis=0)
    down = np.cumsum(np.log1p(-np.minimum(bets[:, None], 0.5 / (1 - left)) * gain), axis=0)
    capital = np.maximum(up, down).max(axis=0) + math.log(0.5)
    kept = candidates[possible & (capital < math.log(1 / ALPHA))]
    mean = float(values.mean())
    low, high = (float(kept.min()), float(kept.max())) if len(kept) else (mean, mean)
    step = 1 / GRID  # the bound lies between two candidates
    return scale[0] + width * max(0.0, min(low - step, mean)), scale[0] + width * min(1.0, max(high + step, mean))


def _shift(strata: Sequence[Stratum], weights: Sequence[float], score: float) -> float:
    """How far the mean moves if each failed result were that score."""
    return math.fsum(
        w * stratum.failed / (stratum.failed + len(stratum.scores)) * (score - _mean(stratum.scores))
        for w, stratum in zip(weights, strata, strict=True)
    )


def _is_noticeable(stratum: Stratum) -> bool:
    return stratum.failed > NOTICEABLE * (stratum.failed + len(stratum.scores))


def _size(stratum: Stratum) -> int:
    return max(stratum.population, len(stratum.scores))


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


def _on(scale: Scale, share: float) -> float:
    return scale[0] + share * (scale[1] - scale[0])
