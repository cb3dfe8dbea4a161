"""Evaluates alert rules: compares a metric with a threshold, with its own past, or with an objective."""

from __future__ import annotations

from monitoring_pipeline.alerts.changes import evaluate_change
from monitoring_pipeline.alerts.checks import Check, Evaluation, now_end
from monitoring_pipeline.alerts.objectives import evaluate_objective
from monitoring_pipeline.alerts.thresholds import evaluate_threshold


def evaluate(check: Check) -> Evaluation:
    """Evaluate the rule now."""
    if not check.figures.knows(check.scope):
        detail = f"no traces of experiment {check.scope.experiment!r} in the last four weeks; check scope.experiment"
        return check.result(now_end(check), None, None, None, detail)
    match check.rule.kind:
        case "threshold":
            return evaluate_threshold(check)
        case "objective":
            return evaluate_objective(check)
        case _:
            return evaluate_change(check)
