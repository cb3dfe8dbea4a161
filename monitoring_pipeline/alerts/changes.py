"""Rules that compare a metric with its own past in the same hours of the week."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import numpy as np

from monitoring_pipeline.alerts.checks import (
    Check,
    Evaluation,
    enough,
    finished_end,
    rate_seen,
    shown,
    too_few,
    window_of,
)
from monitoring_pipeline.alerts.detection import (
    HOURS_OF_A_WEEK,
    LEAST_WEEKS,
    Deviation,
    Floats,
    by_week,
    false_alarm_chance,
    level_change,
    rate_change,
)
from monitoring_pipeline.settings.alerts import RATES
from monitoring_pipeline.windows import HOUR, Window

HOURS_OF_A_DAY = 24


def evaluate_change(check: Check) -> Evaluation:
    """Evaluate a rule about a change."""
    return _rate_change(check) if check.rule.metric in RATES else _level_change(check)


def _rate_change(check: Check) -> Evaluation:
    rule = check.rule
    end, _, count = enough(check, rule.window_hours)
    if count < rule.min_traces:
        return too_few(check, end, count)
    window = _with_past(check, end)
    usual = _usual(check, window)
    counts = check.figures.rate(rule.metric, check.scope, window)
    split = [by_week(np.where(usual, hours, 0.0), rule.baseline_weeks, rule.window_hours) for hours in counts]
    (past_marked, marked), (past_total, total) = split
    change = rate_change(
        float(marked.sum()), float(total.sum()), past_marked.sum(axis=2), past_total.sum(axis=2), rule.change or "both"
    )
    seen = rate_seen(rule, float(marked.sum()), float(total.sum()), window_of(end, rule.window_hours))
    # Coverage is evaluated on finished hours only, so it changes once an hour.
    checks_a_day = HOURS_OF_A_DAY if rule.metric == "coverage" else check.checks_a_day
    return _change_evaluation(
        check, end, change, seen, checks_a_day, lambda change: abs(change.value - change.expected)
    )


def _level_change(check: Check) -> Evaluation:
    rule, end = check.rule, finished_end(check)
    window = _with_past(check, end)
    if rule.metric == "p95_duration_ms":
        hours = np.log(check.figures.p95_by_hour(check.scope, window))
    else:
        hours = check.figures.total(rule.metric, check.scope, window)
    past, last = by_week(np.where(_usual(check, window), hours, np.nan), rule.baseline_weeks, rule.window_hours)
    of_window = _mean(past)
    value = _mean(last[np.newaxis, :])[0]
    if rule.metric == "p95_duration_ms":
        of_window, value = np.exp(of_window), np.exp(value)
    change = level_change(float(value), of_window, HOURS_OF_A_DAY // rule.window_hours, rule.change or "both")
    seen = f"{shown(rule.metric, float(value))}, {window_of(end, rule.window_hours)}"
    return _change_evaluation(
        check,
        end,
        change,
        seen,
        HOURS_OF_A_DAY,
        lambda change: max(change.value / change.expected, change.expected / change.value) - 1,
    )


def _mean(hours: Floats) -> Floats:
    """The mean of each window over its hours that have a value; NaN without any."""
    known = ~np.isnan(hours)
    sums = np.where(known, hours, 0.0).sum(axis=-1)
    return np.where(known.any(axis=-1), sums / np.maximum(known.sum(axis=-1), 1), np.nan)


def _with_past(check: Check, end: datetime) -> Window:
    return window_of(end, check.rule.window_hours + check.rule.baseline_weeks * HOURS_OF_A_WEEK)


def _usual(check: Check, window: Window) -> np.ndarray:
    """Whether each hour counts: hours of earlier alerts do not, unless they are in the last window."""
    recent = window.end - check.rule.window_hours * HOUR
    return np.array(
        [hour >= recent or not any(hour in incident for incident in check.incidents) for hour in window.hours()]
    )


def _change_evaluation(
    check: Check,
    end: datetime,
    change: Deviation | None,
    seen: str,
    checks_a_day: float,
    size: Callable[[Deviation], float],
) -> Evaluation:
    if change is None:
        detail = (
            f"{seen}; fewer than {LEAST_WEEKS} of the last {check.rule.baseline_weeks} weeks have traces in these hours"
        )
        return check.result(end, None, None, None, detail)
    alpha = false_alarm_chance(check.rule.false_alarms_per_30_days, checks_a_day)
    holds = change.p_value < alpha and size(change) >= check.rule.least_change
    detail = (
        f"{seen}; usual in these hours of the week is {shown(check.rule.metric, change.expected)} "
        f"(p = {change.p_value:.1e}, alert below {alpha:.1e})"
    )
    return check.result(end, holds, change.value, change.expected, detail)
