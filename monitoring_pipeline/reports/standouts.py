"""Hours that stand out from the other hours of a period, and incidents: runs of consecutive such hours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from monitoring_pipeline.analysis.statistics import share_interval
from monitoring_pipeline.analysis.summaries import CONFIDENCE
from monitoring_pipeline.reports.estimates import mean_score, share
from monitoring_pipeline.windows import HOUR

MIN_TRACES = 20
MIN_SCORED = 20
MIN_OTHER_HOURS = 3
ERROR_RATE_MARGIN = 0.05
LATENCY_FACTOR = 2.0
SCORE_MARGIN = 0.15

RULE = (
    f"An hour with at least {MIN_TRACES} traces, or {MIN_SCORED} scores, is compared with the other hours of its "
    f"experiment (at least {MIN_OTHER_HOURS}), and stands out by these rules. Error rate: its whole 95 % Wilson "
    f"interval is more than {100 * ERROR_RATE_MARGIN:g} percentage points above the other hours' combined rate. "
    f"Latency: its p95 is at least {LATENCY_FACTOR:g} times their median. Scores: the whole {100 * CONFIDENCE:g} % "
    f"interval of its pass rate is more than {SCORE_MARGIN:g} below their combined pass rate; for a scorer without a "
    f"pass rate, the interval of its mean score is more than {SCORE_MARGIN:g} above or below theirs."
)


@dataclass(frozen=True)
class Standout:
    """One measure of one hour (its start, UTC) that stands out from `baseline`, the value of the other hours.

    The value is a share of traces for "error rate" and "pass rate", milliseconds for "p95", and the mean score for
    "score"; `scorer` is set for "pass rate" and "score".
    """

    experiment_id: str
    hour: pd.Timestamp
    measure: Literal["error rate", "p95", "pass rate", "score"]
    value: float
    baseline: float
    scorer: str = ""


@dataclass(frozen=True)
class Incident:
    """Consecutive hours of one experiment, from `start` to `end`, that stand out; `worst` has one hour per measure."""

    experiment_id: str
    start: pd.Timestamp
    end: pd.Timestamp
    worst: list[Standout]

    def has(self, *measures: str) -> bool:
        """Whether one of the measures stands out."""
        return any(standout.measure in measures for standout in self.worst)


def standouts(performance: pd.DataFrame, scores: pd.DataFrame) -> list[Standout]:
    """The hours that stand out by `RULE`, from the experiments' hourly totals and the `score_moments` of each hour."""
    found: list[Standout] = []
    for experiment_id, hours in performance.groupby("experiment_id"):
        found += _of_traces(str(experiment_id), hours.set_index("hour").astype({"trace_count": float}))
    for keys, hours in scores.groupby(["experiment_id", "scorer"]):
        experiment_id, scorer = keys if isinstance(keys, tuple) else (keys, "")
        found += _of_scores(str(experiment_id), str(scorer), hours.set_index("hour"))
    return found


def _of_traces(experiment_id: str, hours: pd.DataFrame) -> Iterator[Standout]:
    if len(hours) <= MIN_OTHER_HOURS:
        return
    counts, failures = hours["trace_count"], hours["error_count"].astype(float)
    latencies = hours["p95_duration_ms"].astype(float).dropna()
    for hour in hours.index[counts >= MIN_TRACES]:
        count, failed = counts[hour], failures[hour]
        usual = float((failures.sum() - failed) / (counts.sum() - count))
        low, _ = share_interval(int(failed), int(count))
        if low > usual + ERROR_RATE_MARGIN:
            yield Standout(experiment_id, hour, "error rate", float(failed / count), usual)
        others = latencies.drop(hour, errors="ignore")
        usual = float(others.median())
        if hour in latencies.index and len(others) >= MIN_OTHER_HOURS and latencies[hour] >= LATENCY_FACTOR * usual > 0:
            yield Standout(experiment_id, hour, "p95", float(latencies[hour]), usual)


def _of_scores(experiment_id: str, scorer: str, hours: pd.DataFrame) -> Iterator[Standout]:
    """Uses the pass rate if the scorer has one; a mean score has no known good direction, so either side stands out."""
    if len(hours) <= MIN_OTHER_HOURS:
        return
    has_pass_rate = (hours["judged"] > 0).all()
    counted, column = ("judged", "pass_rate") if has_pass_rate else ("scored", "mean_score")
    counts = hours[counted].astype(float)
    sums = hours[column].astype(float) * counts
    for hour, row in zip(hours.index, hours.to_dict("records"), strict=True):
        if row[counted] < MIN_SCORED or counts.sum() == counts[hour]:
            continue
        usual = float((sums.sum() - sums[hour]) / (counts.sum() - counts[hour]))
        estimate = share(sums[hour], counts[hour]) if has_pass_rate else mean_score(row)
        if estimate is None:
            continue
        if estimate.high < usual - SCORE_MARGIN or (not has_pass_rate and estimate.low > usual + SCORE_MARGIN):
            measure = "pass rate" if has_pass_rate else "score"
            yield Standout(experiment_id, hour, measure, float(row[column]), usual, scorer)


def incidents(found: list[Standout]) -> list[Incident]:
    """Group standouts into runs of consecutive hours of an experiment, most standouts first."""
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
