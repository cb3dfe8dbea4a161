"""Estimates of shares and means with their 99 % intervals.

The intervals describe the process that generates the traces, not the traces of the period: a mean score has an interval
even if every trace was scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monitoring_pipeline.analysis.statistics import Estimate, share_interval, t_quantile
from monitoring_pipeline.analysis.summaries import CONFIDENCE


def share(marked: float, count: float) -> Estimate:
    """The share `marked` / `count` of traces and its 99 % interval by E. B. Wilson (JASA 22, 1927)."""
    return Estimate(marked / count, *share_interval(round(marked), round(count), CONFIDENCE))


def mean_of(count: float, mean: float, variance: float) -> Estimate | None:
    """A mean and its 99 % interval by Student's t; None for fewer than two values or a variance of 0."""
    if count < 2 or not variance > 0:
        return None
    margin = t_quantile((1 + CONFIDENCE) / 2, count - 1) * math.sqrt(variance / count)
    return Estimate(mean, mean - margin, mean + margin)


def mean_score(row: Mapping[str, Any], suffix: str = "") -> Estimate | None:
    """The mean score of a row of `analysis.summaries.score_moments`, whose columns may have a suffix."""
    count, mean = row[f"scored{suffix}"], row[f"mean_score{suffix}"]
    if row[f"binary{suffix}"] == 1:
        return share(mean * count, count)
    return mean_of(count, mean, row[f"score_variance{suffix}"])
