"""Parts of assessment on demand: the figures of a scorer, and the gate over them."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.scoring.on_demand import (
    COLUMNS,
    Outcome,
    check_thresholds,
    chosen_scorers,
    outcomes,
    shortfalls,
)
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.scorers import tool_errors
from monitoring_pipeline_tests import odd_scorers
from monitoring_pipeline_tests.made_project import LATENCY, QUALITY


def figures_of(scores: list[float | None], errors: int = 0, pass_if: str | None = None, **costs: Any) -> Outcome:
    """The figures of these scores (None: a value without a score), next to a row of another scorer."""
    rows = [{"scorer": "one", "score": score} for score in scores]
    rows += [{"scorer": "one", "error_code": "SCORER_ERROR"} for _ in range(errors)]
    rows += [{"scorer": "other", "score": 99.0, "cost_usd": 99.0, "error_code": "SCORER_ERROR"}]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for row, cost in costs.items():
        frame.loc[int(row.removeprefix("row")), "cost_usd"] = cost
    [found] = outcomes(frame, [ConfiguredScorer("one", tool_errors, "d" * 16, 1.0, None, pass_if=pass_if)])
    return found


@pytest.mark.parametrize(
    ("scores", "pass_if", "mean", "rate"),
    [
        ([1.0, 0.0, 0.0, 1.0], None, 0.5, 0.5),
        ([1.0, 0.0, 0.0, 1.0], "<= 0", 0.5, 0.5),
        ([1.0, 0.5], None, 0.75, None),
        ([1.0, 0.5], "> 0.5", 0.75, 0.5),
        ([0.2, 0.4, 0.9], ">= 0.4", 0.5, 2 / 3),
        ([None, 3.0], "< 5", 3.0, 1.0),
        ([None], ">= 0", None, None),
        ([], None, None, None),
    ],
)
def test_mean_and_pass_rate(
    scores: list[float | None], pass_if: str | None, mean: float | None, rate: float | None
) -> None:
    found = figures_of(scores, pass_if=pass_if, errors=2)
    assert (found.n, found.errors) == (sum(score is not None for score in scores), 2)
    assert (found.mean, found.pass_rate) == (pytest.approx(mean), pytest.approx(rate))


def test_known_costs_are_summed() -> None:
    assert figures_of([1.0, 1.0]).cost_usd is None
    assert figures_of([1.0, 1.0, 0.0], row0=0.25, row2=0.5).cost_usd == 0.75


def outcome(scorer: str, mean: float | None) -> Outcome:
    return Outcome(scorer, n=0 if mean is None else 4, mean=mean, pass_rate=None, errors=0, cost_usd=None)


def test_scorers_below_their_threshold_are_reported() -> None:
    found = [outcome("low", 0.49996), outcome("high", 0.9), outcome("equal", 0.5), outcome("none", None)]
    assert shortfalls(found, {"low": 0.5, "high": 0.5, "equal": 0.5, "none": 0}) == [
        "low: mean score 0.5000 is under 0.5",
        "none: no score to compare with 0",
    ]
    assert shortfalls(found, {"high": 0.5}) == []
    assert shortfalls(found, {}) == []


@pytest.mark.parametrize(
    ("thresholds", "line"),
    [
        ({"hihg": 0.5, "even": 1}, "fail-under names hihg, but only even, number runs"),
        ({"even": float("nan")}, "fail-under of even must be a finite number"),
        ({"even": float("inf")}, "fail-under of even must be a finite number"),
    ],
)
def test_an_unusable_threshold_is_refused(thresholds: dict[str, float], line: str) -> None:
    scorers = chosen_scorers([], [odd_scorers.even, odd_scorers.number])
    with pytest.raises(SettingsError, match=f"^{re.escape(line)}$"):
        check_thresholds(thresholds, scorers)
    check_thresholds({"even": -1.0}, scorers)


def test_all_configured_scorers_are_chosen_unless_some_are_named() -> None:
    known = [QUALITY, LATENCY]

    def names(*chosen: Any) -> list[str]:
        return [scorer.name for scorer in chosen_scorers(known, *chosen)]

    assert names(None) == ["response_quality", "stage_latency"]
    assert names(["stage_latency", odd_scorers.even, "response_quality"]) == [
        "stage_latency",
        "even",
        "response_quality",
    ]
    assert names([]) == []


def test_an_unknown_name_is_reported_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"^no scorer 'a', 'b'; configured are response_quality, stage_latency$"):
        chosen_scorers([QUALITY, LATENCY], ["a", "stage_latency", "b"])
