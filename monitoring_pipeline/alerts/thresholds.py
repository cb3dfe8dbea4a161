"""Rules that compare a metric with a threshold."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np

from monitoring_pipeline.alerts.checks import (
    Check,
    Evaluation,
    ends,
    enough,
    finished_end,
    now_end,
    rate_seen,
    shown,
    too_few,
    window_of,
)
from monitoring_pipeline.settings.alerts import RATES
from monitoring_pipeline.windows import HOUR, Window

FRESHNESS_LOOK_BACK = timedelta(days=7)
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def evaluate_threshold(check: Check) -> Evaluation:
    """Evaluate a rule with a threshold."""
    match check.rule.metric:
        case "freshness_hours":
            return _freshness(check)
        case "archive_given_up":
            count = check.given_up()
            return _compared(check, now_end(check), count, f"{count} hours that the sensor has given up")
        case "p95_duration_ms":
            return _p95(check)
        case metric if metric in RATES:
            return _rate(check)
        case _:
            return _total(check)


def _compared(check: Check, end: datetime, value: float, seen: str) -> Evaluation:
    rule = check.rule
    threshold = rule.threshold or 0.0
    detail = f"{seen}; the threshold is {rule.operator} {shown(rule.metric, threshold)}"
    return check.result(end, OPERATORS[rule.operator](value, threshold), value, threshold, detail)


def _rate(check: Check) -> Evaluation:
    rule = check.rule
    end, marked, total = enough(check, rule.window_hours)
    if total < rule.min_traces:
        return too_few(check, end, total)
    seen = rate_seen(rule, marked, total, window_of(end, rule.window_hours))
    return _compared(check, end, marked / total, seen)


def _p95(check: Check) -> Evaluation:
    rule, end, durations = check.rule, now_end(check), np.empty(0)
    for end in ends(check):
        durations = check.figures.durations_ms(check.scope, window_of(end, rule.window_hours))
        if len(durations) >= rule.min_traces:
            value = float(np.percentile(durations, 95))
            seen = f"{shown(rule.metric, value)} over {len(durations):,} traces, {window_of(end, rule.window_hours)}"
            return _compared(check, end, value, seen)
    return too_few(check, end, len(durations))


def _total(check: Check) -> Evaluation:
    """Evaluate an hourly sum. The current hour counts if it raises the mean, because its sum can only grow."""
    rule = check.rule

    def mean(end: datetime) -> float:
        return float(check.figures.total(rule.metric, check.scope, window_of(end, rule.window_hours)).mean())

    end, value = finished_end(check), mean(finished_end(check))
    if rule.operator in (">", ">=") and (so_far := mean(now_end(check))) > value:
        end, value = now_end(check), so_far
    return _compared(check, end, value, f"{shown(rule.metric, value)}, {window_of(end, rule.window_hours)}")


def _freshness(check: Check) -> Evaluation:
    now, end = check.figures.now, now_end(check)
    newest = check.figures.newest_hour(check.scope, Window(end - FRESHNESS_LOOK_BACK, end))
    since = newest + HOUR if newest else end - FRESHNESS_LOOK_BACK
    age_hours = max(timedelta(0), now - since) / HOUR
    seen = f"the latest traces are from {newest:%Y-%m-%d %H:%M} UTC" if newest else "no traces in the last 7 days"
    return _compared(check, end, age_hours, seen)
