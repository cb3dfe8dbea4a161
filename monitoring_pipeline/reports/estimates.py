"""Estimates with their 99 % intervals: how far off chance alone may put a share or a mean.

They are of what the traces are drawn from, all that might have come: also where every trace was scored a score varies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monitoring_pipeline.analysis.statistics import Estimate, share_interval
from monitoring_pipeline.analysis.summaries import CONFIDENCE


def share(marked: float, count: float) -> Estimate:
    """A share of so many traces and its 99 % interval by E. B. Wilson (JASA 22, 1927)."""
    return Estimate(marked / count, *share_interval(round(marked), round(count), CONFIDENCE))


def mean_of(count: float, mean: float, variance: float) -> Estimate | None:
    """A mean and its 99 % interval by Student's t; None where the values do not show their spread."""
    from scipy import stats

    if count < 2 or not variance > 0:
        return None
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(variance / count)
    return Estimate(mean, mean - margin, mean + margin)


def mean_score(row: Mapping[str, Any], suffix: str = "") -> Estimate | None:
    """The mean score of a row of `analysis.summaries.score_moments`, whose columns may have a suffix."""
    count, mean = row[f"scored{suffix}"], row[f"mean_score{suffix}"]
    if row[f"binary{suffix}"] == 1:
        return share(mean * count, count)
    return mean_of(count, mean, row[f"score_variance{suffix}"])
