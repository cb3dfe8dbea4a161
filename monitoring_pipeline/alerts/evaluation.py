"""Evaluates alert rules: compares a metric with a threshold, with its own past, or with an objective.

The lake's figures are hourly. The window of a rate or percentile includes the current hour once it contains enough
traces; sums, coverage and changes of a level need finished hours. An hour counts as finished 15 minutes after its end,
when late traces have arrived and been archived.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from monitoring_pipeline import text
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
from monitoring_pipeline.alerts.figures import Figures
from monitoring_pipeline.settings import AlertSettings, ScopeSettings
from monitoring_pipeline.settings.alerts import BAD_IS_LOW, OF_SCORERS, RATES
from monitoring_pipeline.windows import HOUR, Window, floor_hour

SETTLING = timedelta(minutes=15)
FRESHNESS_LOOK_BACK = timedelta(days=7)
HOURS_OF_A_DAY = 24
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True)
class Evaluation:
    """The result of a rule in a scope: whether it holds (None: unknown), the figures, and the reason in words.

    `hour` is the start of the last hour of the window. `measured` is the metric, or the burn rate of an objective;
    `held_against` is the threshold, the usual value or the highest burn rate.
    """

    rule: AlertSettings
    scope: str
    hour: datetime
    holds: bool | None
    measured: float | None
    held_against: float | None
    detail: str


@dataclass(frozen=True)
class Check:
    """The input of an evaluation: a rule, one scope, the figures and the context.

    `incidents` are the windows of earlier, resolved alerts, which the baseline leaves out; `given_up` counts the hours
    that the sensor has given up; `checks_a_day` is the number of checks per day.
    """

    rule: AlertSettings
    scope: ScopeSettings
    figures: Figures
    incidents: Sequence[Window]
    given_up: Callable[[], int]
    checks_a_day: float

    def result(
        self, end: datetime, holds: bool | None, measured: float | None, against: float | None, detail: str
    ) -> Evaluation:
        """The evaluation over a window that ends at `end`."""
        return Evaluation(self.rule, scope_text(self.scope), end - HOUR, holds, measured, against, detail)


def scopes(rule: AlertSettings, scorers: Sequence[str]) -> list[ScopeSettings]:
    """The scopes of a rule: its own, or one for each scorer if its metric is of scorers and it names none."""
    if rule.metric not in OF_SCORERS or rule.scope.scorer is not None:
        return [rule.scope]
    return [rule.scope.model_copy(update={"scorer": name}) for name in scorers]


def scope_text(scope: ScopeSettings) -> str:
    """The scope in words, which also identifies the alert among those of its rule."""
    named = [(word.replace("_", " "), name) for word, name in scope.model_dump(exclude_none=True).items()]
    return ", ".join(f"{word} {name}" for word, name in named) or "all traces"


def evaluate(check: Check) -> Evaluation:
    """Evaluate the rule now."""
    if not check.figures.knows(check.scope):
        detail = f"no traces of experiment {check.scope.experiment!r} in the last four weeks; check scope.experiment"
        return check.result(_now_end(check), None, None, None, detail)
    match check.rule.kind, check.rule.metric:
        case "threshold", "freshness_hours":
            return _freshness(check)
        case "threshold", "archive_given_up":
            count = check.given_up()
            return _against_threshold(check, _now_end(check), count, f"{count} hours that the sensor has given up")
        case "threshold", "p95_duration_ms":
            return _p95(check)
        case "threshold", metric if metric in RATES:
            return _rate(check)
        case "threshold", _:
            return _total(check)
        case "objective", _:
            return _objective(check)
        case _, metric if metric in RATES:
            return _rate_change(check)
        case _:
            return _level_change(check)


def shown(metric: str, value: float) -> str:
    """A value of the metric, formatted for people."""
    if metric in RATES:
        return text.percent(value)
    if metric == "p95_duration_ms":
        return text.duration(value)
    if metric == "cost_usd_per_hour":
        return f"{text.cost(value)} an hour"
    if metric == "tokens_per_hour":
        return f"{text.millions(value)} tokens an hour"
    return f"{value:.1f} h" if metric == "freshness_hours" else text.count(value)


def _now_end(check: Check) -> datetime:
    return floor_hour(check.figures.now) + HOUR


def _finished_end(check: Check) -> datetime:
    return floor_hour(check.figures.now - SETTLING)


def _against_threshold(check: Check, end: datetime, value: float, seen: str) -> Evaluation:
    rule = check.rule
    threshold = rule.threshold or 0.0
    detail = f"{seen}; the threshold is {rule.operator} {shown(rule.metric, threshold)}"
    return check.result(end, OPERATORS[rule.operator](value, threshold), value, threshold, detail)


def _too_few(check: Check, end: datetime, count: float) -> Evaluation:
    return check.result(
        end, None, None, None, f"{text.count(count)} traces; the rule needs at least {check.rule.min_traces}"
    )


def _ends(check: Check) -> tuple[datetime, ...]:
    """The possible ends of the window, latest first: after the current hour, or before it."""
    if check.rule.metric == "coverage":  # much of the current hour is not scored yet
        return (_finished_end(check),)
    return _now_end(check), _now_end(check) - HOUR


def _window(end: datetime, hours: int) -> Window:
    return Window(end - hours * HOUR, end)


def _enough(check: Check, hours: int) -> tuple[datetime, float, float]:
    """End, marked and total traces of the latest window of `hours` with enough traces, else of the earliest tried."""
    end, marked, total = _now_end(check), 0.0, 0.0
    for end in _ends(check):
        counts = check.figures.rate(check.rule.metric, check.scope, _window(end, hours))
        marked, total = (float(count.sum()) for count in counts)
        if total >= check.rule.min_traces:
            break
    return end, marked, total


def _rate(check: Check) -> Evaluation:
    rule = check.rule
    end, marked, total = _enough(check, rule.window_hours)
    if total < rule.min_traces:
        return _too_few(check, end, total)
    seen = _rate_seen(rule, marked, total, _window(end, rule.window_hours))
    return _against_threshold(check, end, marked / total, seen)


def _rate_seen(rule: AlertSettings, marked: float, total: float, window: Window) -> str:
    return f"{shown(rule.metric, marked / total)} of {text.count(total)} traces, {window}"


def _p95(check: Check) -> Evaluation:
    rule, end, durations = check.rule, _now_end(check), np.empty(0)
    for end in _ends(check):
        durations = check.figures.durations_ms(check.scope, _window(end, rule.window_hours))
        if len(durations) >= rule.min_traces:
            value = float(np.percentile(durations, 95))
            seen = f"{shown(rule.metric, value)} over {len(durations):,} traces, {_window(end, rule.window_hours)}"
            return _against_threshold(check, end, value, seen)
    return _too_few(check, end, len(durations))


def _total(check: Check) -> Evaluation:
    """Evaluate an hourly sum. The current hour counts if it raises the mean, because its sum can only grow."""
    rule = check.rule

    def mean(end: datetime) -> float:
        return float(check.figures.total(rule.metric, check.scope, _window(end, rule.window_hours)).mean())

    end, value = _finished_end(check), mean(_finished_end(check))
    if rule.operator in (">", ">=") and (so_far := mean(_now_end(check))) > value:
        end, value = _now_end(check), so_far
    return _against_threshold(check, end, value, f"{shown(rule.metric, value)}, {_window(end, rule.window_hours)}")


def _freshness(check: Check) -> Evaluation:
    now, end = check.figures.now, _now_end(check)
    newest = check.figures.newest_hour(check.scope, Window(end - FRESHNESS_LOOK_BACK, end))
    since = newest + HOUR if newest else end - FRESHNESS_LOOK_BACK
    age_hours = max(timedelta(0), now - since) / HOUR
    seen = f"the latest traces are from {newest:%Y-%m-%d %H:%M} UTC" if newest else "no traces in the last 7 days"
    return _against_threshold(check, end, age_hours, seen)


def _objective(check: Check) -> Evaluation:
    """Evaluate an objective: it holds if both windows burn the error budget too fast.

    The long window shows that the problem matters; the short one ends the alert when the problem does. The burn rate is
    the share of bad traces over (1 - objective).

    Source: the Google SRE Workbook (B. Beyer et al., 2018), chapter 5, multiwindow burn rates.
    """
    rule = check.rule
    end, _, count = _enough(check, rule.short_window_hours)
    if count < rule.min_traces:
        return _too_few(check, end, count)
    burns = []
    for hours in (rule.window_hours, rule.short_window_hours):
        marked, total = check.figures.rate(rule.metric, check.scope, _window(end, hours))
        share = float(marked.sum() / total.sum())
        burns.append((1 - share if rule.metric in BAD_IS_LOW else share) / (1 - (rule.objective or 0.0)))
    detail = (
        f"the budget of objective {rule.objective:g} is spent {burns[0]:.1f} times too fast over {rule.window} and "
        f"{burns[1]:.1f} times over {rule.short_window}, until {end:%Y-%m-%d %H:%M}; the limit is {rule.burn_rate:g}"
    )
    return check.result(end, min(burns) >= rule.burn_rate, burns[0], rule.burn_rate, detail)


def _rate_change(check: Check) -> Evaluation:
    rule = check.rule
    end, _, count = _enough(check, rule.window_hours)
    if count < rule.min_traces:
        return _too_few(check, end, count)
    window = _with_past(check, end)
    usual = _usual(check, window)
    counts = check.figures.rate(rule.metric, check.scope, window)
    split = [by_week(np.where(usual, hours, 0.0), rule.baseline_weeks, rule.window_hours) for hours in counts]
    (past_marked, marked), (past_total, total) = split
    change = rate_change(
        float(marked.sum()), float(total.sum()), past_marked.sum(axis=2), past_total.sum(axis=2), rule.change or "both"
    )
    seen = _rate_seen(rule, float(marked.sum()), float(total.sum()), _window(end, rule.window_hours))
    # Coverage is evaluated on finished hours only, so it changes once an hour.
    checks_a_day = HOURS_OF_A_DAY if rule.metric == "coverage" else check.checks_a_day
    return _change_evaluation(
        check, end, change, seen, checks_a_day, lambda change: abs(change.value - change.expected)
    )


def _level_change(check: Check) -> Evaluation:
    rule, end = check.rule, _finished_end(check)
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
    seen = f"{shown(rule.metric, float(value))}, {_window(end, rule.window_hours)}"
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
    return _window(end, check.rule.window_hours + check.rule.baseline_weeks * HOURS_OF_A_WEEK)


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
