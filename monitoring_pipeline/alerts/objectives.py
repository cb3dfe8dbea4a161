"""Rules with an objective: how fast the error budget is spent."""

from __future__ import annotations

from monitoring_pipeline.alerts.checks import Check, Evaluation, enough, too_few, window_of
from monitoring_pipeline.settings.alerts import BAD_IS_LOW


def evaluate_objective(check: Check) -> Evaluation:
    """Evaluate an objective: it holds if both windows burn the error budget too fast.

    The long window shows that the problem matters; the short one ends the alert when the problem does. The burn rate is
    the share of bad traces over (1 - objective).

    Source: the Google SRE Workbook (B. Beyer et al., 2018), chapter 5, multiwindow burn rates.
    """
    rule = check.rule
    end, _, count = enough(check, rule.short_window_hours)
    if count < rule.min_traces:
        return too_few(check, end, count)
    burns = []
    for hours in (rule.window_hours, rule.short_window_hours):
        marked, total = check.figures.rate(rule.metric, check.scope, window_of(end, hours))
        share = float(marked.sum() / total.sum())
        burns.append((1 - share if rule.metric in BAD_IS_LOW else share) / (1 - (rule.objective or 0.0)))
    detail = (
        f"the budget of objective {rule.objective:g} is spent {burns[0]:.1f} times too fast over {rule.window} and "
        f"{burns[1]:.1f} times over {rule.short_window}, until {end:%Y-%m-%d %H:%M}; the limit is {rule.burn_rate:g}"
    )
    return check.result(end, min(burns) >= rule.burn_rate, burns[0], rule.burn_rate, detail)
