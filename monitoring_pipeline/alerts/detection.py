"""Statistical tests of a window against the same hours of previous weeks.

Traffic has a daily and a weekly rhythm, so a window is compared only with windows that start at the same hour of the
same weekday. Their usual variation is estimated from all hours of the previous weeks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Direction = Literal["up", "down", "both"]
Floats = npt.NDArray[np.float64]

HOURS_OF_A_WEEK = 168
LEAST_WEEKS = 3  # fewer windows do not show what is usual
MAD_TO_SIGMA = 1.4826  # of a normal distribution
MAD_EFFICIENCY = 0.37  # of a normal distribution: share of the sample that a standard deviation would need


@dataclass(frozen=True)
class Deviation:
    """The result of a test: observed and expected value, and the probability of such a difference by chance."""

    value: float
    expected: float
    p_value: float


def by_week(hours: Floats, weeks: int, window_hours: int) -> tuple[Floats, Floats]:
    """Hourly values, oldest first, as past windows (weeks, windows of a week, hours), and the hours of the last window.

    `hours` contains `weeks` weeks followed by one window. The first window of each week starts at the hour and weekday
    of the last window.
    """
    past = hours[: weeks * HOURS_OF_A_WEEK].reshape(weeks, HOURS_OF_A_WEEK // window_hours, window_hours)
    return past, hours[weeks * HOURS_OF_A_WEEK :]


def rate_change(
    marked: float, total: float, past_marked: Floats, past_total: Floats, direction: Direction
) -> Deviation | None:
    """Test whether the rate of `marked` in `total` traces differs from past windows, shaped (weeks, windows of a week).

    None without traces, or if fewer than three of the same windows of earlier weeks have traces.

    The test is exact under a beta-binomial distribution of the count. Its mean is the rate of the same windows of
    earlier weeks; its spread combines chance, the limited past, and the variation of rates beyond chance. The last is
    the intra-class correlation by the method of moments over all past windows, each measured from the rate of its hour
    and weekday.

    Source: J. G. Skellam, J. R. Stat. Soc. B 10, 1948, for the distribution and its moments.
    """
    from scipy import stats

    seen = past_total > 0
    if total < 1 or seen[:, 0].sum() < LEAST_WEEKS:
        return None
    count = past_total.sum(axis=0)
    rates = (past_marked.sum(axis=0) + 0.5) / (count + 1)  # never 0 or 1, which would have no spread
    correlation = _correlation(past_marked, past_total, rates)
    alike = past_total[:, 0]
    informative = float((alike / (1 + correlation * np.maximum(alike - 1, 0))).sum())
    spread = min(correlation + 1 / informative, 0.99)
    weight = 1 / spread - 1
    expected = float(rates[0])
    shape = (int(total), expected * weight, (1 - expected) * weight)
    above, below = float(stats.betabinom.sf(marked - 1, *shape)), float(stats.betabinom.cdf(marked, *shape))
    return Deviation(marked / total, expected, _p_value(above, below, direction))


def _correlation(marked: Floats, total: Floats, rates: Floats) -> float:
    weeks = (total > 0).sum(axis=0)
    used = (total > 0) & (weeks >= 2)
    # Each week is part of the mean it is measured from, so squares are too small by (weeks - 1) / weeks.
    squares = (marked - total * rates) ** 2 * (weeks / np.maximum(weeks - 1, 1))
    chance = total * rates * (1 - rates)
    beyond = chance * (total - 1)
    return max(0.0, float((squares - chance)[used].sum() / beyond[used].sum())) if beyond[used].sum() > 0 else 0.0


def level_change(value: float, past: Floats, windows_of_a_day: int, direction: Direction) -> Deviation | None:
    """Test whether the level `value` (above 0) differs from past windows, shaped (weeks, windows of a week).

    In `past`, NaN marks a window without a value. None if fewer than three of the same windows of earlier weeks have a
    value. Values are compared as logarithms with the median of the same windows. The spread is the median absolute
    difference of past windows at that hour of the day, each from the median of its other weeks; or that of all windows
    if it is larger. Student's t distribution accounts for the spread being an estimate; its degrees of freedom follow
    from the efficiency of the median absolute difference.

    Source: P. J. Rousseeuw and C. Croux, JASA 88, 1993, for the median absolute difference and its efficiency.
    """
    from scipy import stats

    logs = np.log(np.where(past > 0, past, np.nan))
    alike = logs[~np.isnan(logs[:, 0]), 0]
    if value <= 0 or len(alike) < LEAST_WEEKS:
        return None
    distances = np.abs(np.concatenate([logs[[week]] - _median_of_others(logs, week) for week in range(len(logs))]))
    of_the_hour = distances[:, ::windows_of_a_day]
    known = of_the_hour[~np.isnan(of_the_hour)]
    spread = MAD_TO_SIGMA * max(float(np.median(known)), float(np.nanmedian(distances)), 1e-6)
    expected = float(np.median(alike))
    score = (float(np.log(value)) - expected) / spread
    freedom = max(1.0, MAD_EFFICIENCY * (len(known) - 1))
    above, below = float(stats.t.sf(score, freedom)), float(stats.t.cdf(score, freedom))
    return Deviation(value, float(np.exp(expected)), _p_value(above, below, direction))


def _median_of_others(logs: Floats, week: int) -> Floats:
    # numpy's nanmedian takes a hundred times as long on few rows.
    others = np.sort(np.delete(logs, week, axis=0), axis=0)  # NaN comes last
    count = (~np.isnan(others)).sum(axis=0)
    middle = [
        np.take_along_axis(others, place[np.newaxis], axis=0)[0]
        for place in (np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(others) - 1))
    ]
    return np.where(count >= LEAST_WEEKS - 1, (middle[0] + middle[1]) / 2, np.nan)


def _p_value(above: float, below: float, direction: Direction) -> float:
    if direction == "both":
        return min(1.0, 2 * min(above, below))
    return above if direction == "up" else below


def false_alarm_chance(per_30_days: float, checks_a_day: float) -> float:
    """The p-value below which a check may alert, for at most `per_30_days` alerts by chance in 30 days.

    Source: Bonferroni's inequality, over all checks of the 30 days.
    """
    return per_30_days / (30 * checks_a_day)
