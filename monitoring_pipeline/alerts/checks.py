"""A check of one alert rule in one scope: its input, its result, and the hours that it covers.

The lake's figures are hourly. The window of a rate or percentile includes the current hour once it contains enough
traces; sums, coverage and changes of a level need finished hours. An hour counts as finished 15 minutes after its end,
when late traces have arrived and been archived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from monitoring_pipeline import text
from monitoring_pipeline.alerts.figures import Figures
from monitoring_pipeline.settings import AlertSettings, ScopeSettings
from monitoring_pipeline.settings.alerts import OF_SCORERS, RATES
from monitoring_pipeline.windows import HOUR, Window, floor_hour

SETTLING = timedelta(minutes=15)


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


def now_end(check: Check) -> datetime:
    """The end of the current hour."""
    return floor_hour(check.figures.now) + HOUR


def finished_end(check: Check) -> datetime:
    """The end of the last finished hour."""
    return floor_hour(check.figures.now - SETTLING)


def ends(check: Check) -> tuple[datetime, ...]:
    """The possible ends of the window, latest first: after the current hour, or before it."""
    if check.rule.metric == "coverage":  # much of the current hour is not scored yet
        return (finished_end(check),)
    return now_end(check), now_end(check) - HOUR


def window_of(end: datetime, hours: int) -> Window:
    """The window of that many hours before `end`."""
    return Window(end - hours * HOUR, end)


def enough(check: Check, hours: int) -> tuple[datetime, float, float]:
    """End, marked and total traces of the latest window of `hours` with enough traces, else of the earliest tried."""
    end, marked, total = now_end(check), 0.0, 0.0
    for end in ends(check):
        counts = check.figures.rate(check.rule.metric, check.scope, window_of(end, hours))
        marked, total = (float(count.sum()) for count in counts)
        if total >= check.rule.min_traces:
            break
    return end, marked, total


def too_few(check: Check, end: datetime, count: float) -> Evaluation:
    """The evaluation, unknown, of a window with only `count` traces."""
    return check.result(
        end, None, None, None, f"{text.count(count)} traces; the rule needs at least {check.rule.min_traces}"
    )


def rate_seen(rule: AlertSettings, marked: float, total: float, window: Window) -> str:
    """The rate of the window in words."""
    return f"{shown(rule.metric, marked / total)} of {text.count(total)} traces, {window}"
