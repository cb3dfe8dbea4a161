"""Hours that stand out from the other hours of a period, and the incidents that consecutive ones make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

import pandas as pd

from monitoring_pipeline.analysis.statistics import share_interval
from monitoring_pipeline.windows import HOUR

MIN_TRACES = 20
MIN_SCORED = 20
MIN_OTHER_HOURS = 3
ERROR_RATE_MARGIN = 0.05
LATENCY_FACTOR = 2.0
SCORE_MARGIN = 0.15

RULE = (
    f"An hour stands out against the other hours of its experiment (at least {MIN_OTHER_HOURS}). Error rate: its whole "
    f"95 % Wilson interval is more than {100 * ERROR_RATE_MARGIN:g} percentage points above the others' together. "
    f"Latency: its p95 is at least {LATENCY_FACTOR:g} times their median. Quality: the whole 95 % interval of its mean "
    f"score is more than {SCORE_MARGIN:g} away from their median, on either side. Only hours with at least "
    f"{MIN_TRACES} traces, or {MIN_SCORED} scored traces, are compared."
)


@dataclass(frozen=True)
class Standout:
    """One measure of one hour (its start, UTC) that stands out from `baseline`, what the other hours have.

    The value is a share of traces for "error rate", milliseconds for "p95", the mean score of `scorer` for "score".
    """

    experiment_id: str
    hour: pd.Timestamp
    measure: Literal["error rate", "p95", "score"]
    value: float
    baseline: float
    scorer: str = ""


@dataclass(frozen=True)
class Incident:
    """Consecutive hours of one experiment, from `start` to `end`, that stand out; the worst of each measure."""

    experiment_id: str
    start: pd.Timestamp
    end: pd.Timestamp
    worst: list[Standout]

    def has(self, *measures: str) -> bool:
        """Whether one of the measures stands out."""
        return any(standout.measure in measures for standout in self.worst)


def standouts(performance: pd.DataFrame, quality: pd.DataFrame) -> list[Standout]:
    """The hours that `RULE` picks, from the experiments' hourly totals and the hourly quality, with float columns."""
    found: list[Standout] = []
    for experiment_id, rows in performance.loc[performance["trace_count"] >= MIN_TRACES].groupby("experiment_id"):
        hours = rows.set_index("hour")
        counts, failures = hours["trace_count"].sum(), hours["error_count"].sum()
        for hour, value, _ in _other_hours(hours, "error_rate"):
            count, failed = hours.at[hour, "trace_count"], hours.at[hour, "error_count"]
            low, _ = share_interval(int(failed), int(count))
            usual = float((failures - failed) / (counts - count))
            if low > usual + ERROR_RATE_MARGIN:
                found.append(Standout(str(experiment_id), hour, "error rate", value, usual))
        for hour, value, usual in _other_hours(hours, "p95_duration_ms"):
            if usual > 0 and value >= LATENCY_FACTOR * usual:
                found.append(Standout(str(experiment_id), hour, "p95", value, usual))
    for keys, rows in quality.loc[quality["scored"] >= MIN_SCORED].groupby(["experiment_id", "scorer"]):
        experiment_id, scorer = keys if isinstance(keys, tuple) else (keys, "")
        hours = rows.set_index("hour")
        for hour, value, usual in _other_hours(hours, "mean_score"):
            # Whether high or low is good is the scorer's affair, so either side counts.
            if hours.at[hour, "ci_high"] < usual - SCORE_MARGIN or hours.at[hour, "ci_low"] > usual + SCORE_MARGIN:
                found.append(Standout(str(experiment_id), hour, "score", value, usual, str(scorer)))
    return found


def _other_hours(hours: pd.DataFrame, column: str) -> Iterator[tuple[pd.Timestamp, float, float]]:
    """(hour, value, median of the other hours) for the hours in which `column` is known."""
    known = {hour: float(value) for hour, value in hours[column].items() if pd.notna(value)}
    if len(known) > MIN_OTHER_HOURS:
        for hour, value in known.items():
            yield hour, value, median(other for at, other in known.items() if at != hour)  # type: ignore[misc]


def incidents(found: list[Standout]) -> list[Incident]:
    """Standouts joined over consecutive hours of an experiment, those with the most standouts first."""
    runs: list[list[Standout]] = []
    for standout in sorted(found, key=lambda s: (s.experiment_id, s.hour)):
        last = runs[-1][-1] if runs else None
        if last and last.experiment_id == standout.experiment_id and standout.hour - last.hour <= HOUR:
            runs[-1].append(standout)
        else:
            runs.append([standout])
    return [_incident(run) for run in sorted(runs, key=len, reverse=True)]


def _incident(run: list[Standout]) -> Incident:
    worst: dict[tuple[str, str], Standout] = {}
    for standout in run:
        measure = (standout.measure, standout.scorer)
        seen = worst.setdefault(measure, standout)
        if abs(standout.value - standout.baseline) > abs(seen.value - seen.baseline):
            worst[measure] = standout
    return Incident(run[0].experiment_id, run[0].hour, run[-1].hour + HOUR, list(worst.values()))
