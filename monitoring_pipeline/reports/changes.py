"""Changes against earlier periods, each with an interval that separates it from noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import pandas as pd

from monitoring_pipeline.analysis.statistics import Estimate, difference_bounds
from monitoring_pipeline.analysis.summaries import CONFIDENCE
from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.estimates import mean_of, mean_score, share

Measure = Literal["trace_count", "error_rate", "p95_duration_ms", "cost_per_trace_usd", "pass_rate", "mean_score"]
MEASURES = get_args(Measure)
# compared by value / before, all others by value - before
RATIOS = (
    "trace_count",
    "p95_duration_ms",
    "cost_per_trace_usd",
)
WORSE_WHEN_HIGHER = ("error_rate", "p95_duration_ms", "cost_per_trace_usd")
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

RULE = (
    f"A change is noise if the {100 * CONFIDENCE:g} % interval of the difference (or ratio) includes no change; traces "
    "count as independent. It is called worse or better only for measures with a known good direction."
)


@dataclass(frozen=True)
class Change:
    """A measure compared with its value in an earlier period, whose name is `against`, displayed as `against_label`.

    low and high bound the 99 % interval of value - before, for `RATIOS` of value / before; None with too few traces.
    experiment_id is None for all experiments together; scorer is "" except for scores. better is None if the good
    direction is unknown.
    """

    measure: Measure
    experiment_id: str | None
    scorer: str
    against: str
    against_label: str
    value: float
    before: float
    low: float | None
    high: float | None
    better: bool | None

    @property
    def amount(self) -> float:
        """value - before; value / before for `RATIOS`."""
        if self.measure not in RATIOS:
            return self.value - self.before
        return self.value / self.before if self.before else math.nan

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the interval excludes "no change"; None without an interval."""
        no_change = 1 if self.measure in RATIOS else 0
        return None if self.low is None or self.high is None else not self.low <= no_change <= self.high


def changes(data: ReportData) -> list[Change]:
    """Changes of all measures that an earlier period also has: for all traces, each experiment and each scorer."""
    return [change for label, earlier in data.period.earlier() for change in _against(data, label, earlier.name)]


def _against(data: ReportData, label: str, name: str) -> Iterator[Change]:
    totals = data.totals.assign(
        experiment_id=data.totals["experiment_id"].where(data.totals["experiment_id"].notna(), None)
    )
    own, before = totals[totals["period"] == data.period.name], totals[totals["period"] == name]
    earlier = {row["experiment_id"]: row for row in before.to_dict("records")}
    for row in own.to_dict("records"):
        if row["experiment_id"] in earlier:
            yield from _of_traces(row, earlier[row["experiment_id"]], name, label, data.is_complete)
    key = ["experiment_id", "scorer", "scorer_digest"]
    own, before = data.scores[data.scores["period"] == data.period.name], data.scores[data.scores["period"] == name]
    for row in own.merge(before, on=key, suffixes=("", "_before")).sort_values(key).to_dict("records"):
        yield from _of_scores(row, name, label)


def _of_traces(
    row: dict[str, Any], before: dict[str, Any], against: str, label: str, complete: bool
) -> Iterator[Change]:
    measures: dict[Measure, tuple[float, float, tuple[float, float] | None]] = {
        "trace_count": (row["trace_count"], before["trace_count"], _ratio(_count(row), _count(before))),
        "error_rate": (
            row["error_count"] / row["trace_count"],
            before["error_count"] / before["trace_count"],
            difference_bounds(
                share(row["error_count"], row["trace_count"]), share(before["error_count"], before["trace_count"])
            ),
        ),
        "p95_duration_ms": (row["p95_duration_ms"], before["p95_duration_ms"], _ratio(_p95(row), _p95(before))),
        "cost_per_trace_usd": (row["cost_mean"], before["cost_mean"], _ratio(_cost(row), _cost(before))),
    }
    for measure, (value, earlier, bounds) in measures.items():
        if _is_known(value) and _is_known(earlier) and (complete or measure != "trace_count"):
            change = Change(
                measure,
                row["experiment_id"],
                "",
                against,
                label,
                value,
                earlier,
                *(bounds or (None, None)),
                better=None,
            )
            better = change.amount < (1 if measure in RATIOS else 0) if measure in WORSE_WHEN_HIGHER else None
            yield Change(**{**vars(change), "better": better})


def _of_scores(row: dict[str, Any], against: str, label: str) -> Iterator[Change]:
    place = (row["experiment_id"], row["scorer"], against, label)
    judged, judged_before = row["judged"], row["judged_before"]
    if judged and judged_before:
        rate, before = row["pass_rate"], row["pass_rate_before"]
        bounds = difference_bounds(share(rate * judged, judged), share(before * judged_before, judged_before))
        yield Change("pass_rate", *place, rate, before, *bounds, better=rate > before)
    if _is_known(row["mean_score"]) and _is_known(row["mean_score_before"]):
        own, before = mean_score(row), mean_score(row, "_before")
        bounds = difference_bounds(own, before) if own and before else (None, None)
        yield Change("mean_score", *place, row["mean_score"], row["mean_score_before"], *bounds, better=None)


def _count(row: dict[str, Any]) -> Estimate | None:
    """A count of independent arrivals (Poisson) and its interval on the logarithm."""
    count = float(row["trace_count"])
    factor = math.exp(_Z / math.sqrt(count))
    return Estimate(count, count / factor, count * factor)


def _p95(row: dict[str, Any]) -> Estimate | None:
    estimate = Estimate(row["p95_duration_ms"], row["p95_low"], row["p95_high"])
    return estimate if all(map(_is_known, estimate)) else None


def _cost(row: dict[str, Any]) -> Estimate | None:
    return mean_of(row["costed"], row["cost_mean"], row["cost_variance"])


def _ratio(value: Estimate | None, before: Estimate | None) -> tuple[float, float] | None:
    """The interval of value / before: that of the difference of their logarithms."""
    if value is None or before is None or not (value.low > 0 and before.low > 0):
        return None
    low, high = difference_bounds(Estimate(*map(math.log, value)), Estimate(*map(math.log, before)))
    return math.exp(low), math.exp(high)


def _is_known(value: Any) -> bool:
    return not pd.isna(value) and math.isfinite(value)
