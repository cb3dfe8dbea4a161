"""Forecasts of a backfill's traces, tokens and cost, against the backfill itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from monitoring_pipeline import lifecycle
from monitoring_pipeline.orchestration.backfills import ScorerOptions, forecasts
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.scoring.forecast import Forecast, forecast
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.scoring.runner import Spent
from monitoring_pipeline.tables import ASSESSMENTS
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.made_project import IDS, JUDGE, LATENCY, PRICE, WINDOW, MadeProject, scorer
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.scoring.model_double import GARBLED, OK, ModelDouble, serving
from monitoring_pipeline_tests.scoring.test_builtins import load
from monitoring_pipeline_tests.sources.stores import START

ODD = "monitoring_pipeline_tests.odd_scorers"
EVEN, NUMBER, LENGTH = (scorer(name, f"{ODD}:{name}") for name in ("even", "number", "length"))
HOUR = Window(START, START + timedelta(hours=1))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelDouble]:
    with serving(monkeypatch) as double:
        # As expensive as possible: a token per byte, and long answers.
        double.tokens_of = lambda text: len(text.encode())
        double.answer = lambda prompt: {"result": "yes", "rationale": "x" * 800}
        yield double


def forecast_of(project: MadeProject, window: Window = WINDOW, **options: Any) -> Forecast:
    [found] = forecasts(project.settings, window, [project.settings.scorers[0].name], ScorerOptions(**options))
    return found


def counts(forecast: Forecast) -> tuple[int, ...]:
    return forecast.archived, forecast.eligible, forecast.scored, forecast.failed, forecast.to_score


def score(project: MadeProject, window: Window = WINDOW, **options: Any) -> None:
    [configured] = [handle.configured for handle in lifecycle.handles(project.settings)]
    assert configured is not None
    score_window(project.lake, configured, window, "run", **options)


def test_scored_and_failed_traces_are_counted_apart_from_traces_to_score(made: MadeProject) -> None:
    project = made.having(EVEN)
    assert counts(forecast_of(project)) == (40, 40, 0, 0, 40)
    score(project, HOUR)
    assert counts(forecast_of(project)) == (40, 40, 8, 2, 30)
    assert counts(forecast_of(project, retry_failed=True)) == (40, 40, 8, 2, 32)
    assert counts(forecast_of(project, HOUR)) == (10, 10, 8, 2, 0)


def test_rate_and_filter_are_those_of_the_backfill(made: MadeProject) -> None:
    project = made.having(LATENCY)
    lifecycle.handle("stage_latency", project.settings).register().update(sample_rate=0.3, filter="tags.env = 'prod'")
    at_its_own, at_half = forecast_of(project), forecast_of(project, sample_rate=0.5)
    assert 0 < at_its_own.to_score < at_half.to_score < forecast_of(project, sample_rate=1.0).to_score == 20
    assert at_half.to_score == at_half.eligible
    handle = lifecycle.handle("stage_latency", project.settings)
    assert handle.configured is not None
    run_as = replace(handle.configured, sample_rate=0.5, filter=handle.filter)
    score_window(project.lake, run_as, WINDOW, "run")
    assert len(project.scored("stage_latency")) == at_half.to_score


def test_sessions_are_counted_once_each(made: MadeProject) -> None:
    project = made.having(LENGTH)
    found = forecast_of(project)
    assert (found.archived, found.to_score) == (40, 2)
    score(project)
    assert counts(forecast_of(project)) == (40, 2, 2, 0, 0)


def test_a_scorer_without_a_model_uses_nothing(made: MadeProject) -> None:
    found = forecast_of(made.having(NUMBER))
    assert (found.at_most, found.expected, found.minutes) == (Spent(), None, None)


def test_a_judge_uses_no_more_than_forecast(made: MadeProject, model: ModelDouble) -> None:
    project = made.having(JUDGE)
    before = forecast_of(project)
    assert model.requests == []
    assert before.expected is None
    score(project)
    assert len(model.requests) == before.to_score == 40
    _holds(before.at_most, project)
    assert forecast_of(project).at_most == Spent(0, 0, 0.0)


def _holds(at_most: Spent, project: MadeProject) -> None:
    rows = project.rows()
    used = {name: sum(row[name] for row in rows) for name in ("input_tokens", "output_tokens", "cost_usd")}
    assert at_most.input_tokens is not None
    assert at_most.output_tokens is not None
    assert at_most.cost_usd is not None
    assert 0 < used["input_tokens"] <= at_most.input_tokens
    assert 0 < used["output_tokens"] <= at_most.output_tokens
    assert 0 < used["cost_usd"] <= at_most.cost_usd
    assert at_most.cost_usd == pytest.approx((at_most.input_tokens * 1000 + at_most.output_tokens * 4000) / 1e6)


CHUNKS = [["the refund takes days", "flights leave at nine", "a bag weighs 20 kg"] * 4, ["one more"]]


@pytest.mark.parametrize("builtin", ["RetrievalRelevance", "KnowledgeRetention", "ToolCallEfficiency"])
def test_a_judge_with_several_requests_per_trace_uses_no_more_than_forecast(
    lake: LakeResource, model: ModelDouble, builtin: str
) -> None:
    archive_traces(lake, HOUR, [made_trace(number, session="s", retrieved=CHUNKS) for number in range(3)])
    judge = load(builtin=builtin, name="judge", sample_rate=1.0, session_idle_minutes=0, **PRICE)
    before = forecast(lake, judge, HOUR)
    counted = score_window(lake, judge, HOUR, "run")
    assert counted.seen == before.to_score
    columns = ("input_tokens", "output_tokens", "cost_usd")
    rows = lake.read_columns(ASSESSMENTS, HOUR, *columns).to_pylist()
    used = [sum(row[name] or 0 for row in rows) for name in columns]
    assert len(model.requests) > len(rows) > 0
    for name, value in zip(columns, used, strict=True):
        assert value <= (getattr(before.at_most, name) or 0), name
    assert used[0] > 0


def test_the_expected_usage_is_the_mean_of_earlier_results(made: MadeProject, model: ModelDouble) -> None:
    project = made.having(JUDGE.model_copy(update={"requests_per_minute": 600}))
    score(project, HOUR)
    found = forecast_of(project)
    rows = project.rows()
    assert len(rows) == 10
    assert found.to_score == 30
    assert found.expected is not None
    assert found.expected.input_tokens == round(30 * sum(row["input_tokens"] for row in rows) / 10)
    assert found.expected.output_tokens == round(30 * sum(row["output_tokens"] for row in rows) / 10)
    assert found.expected.cost_usd == pytest.approx(3 * sum(row["cost_usd"] for row in rows))
    assert found.minutes == pytest.approx(30 / 600)


def test_usage_that_no_result_reports_is_not_expected(made: MadeProject, model: ModelDouble) -> None:
    project = made.having(JUDGE)
    score(project, HOUR)
    rows = project.lake.read_columns(ASSESSMENTS, HOUR, *ASSESSMENTS.columns.names).to_pylist()
    without = [{**row, "input_tokens": 10, "output_tokens": None, "cost_usd": None} for row in rows]
    project.lake.replace(ASSESSMENTS, HOUR, from_dicts(ASSESSMENTS, without))
    assert forecast_of(project).expected == Spent(300, None, None)


def test_retries_of_failed_traces_are_forecast_too(made: MadeProject, model: ModelDouble) -> None:
    project = made.having(JUDGE)
    model.fate = lambda number, prompt: GARBLED if number < 5 else OK
    score(project)
    assert counts(forecast_of(project)) == (40, 40, 35, 5, 0)
    again = forecast_of(project, retry_failed=True)
    assert again.to_score == 5
    spent, requests = sum(row["cost_usd"] for row in project.rows()), len(model.requests)
    score(project, retry_failed=True)
    assert len(model.requests) == requests + 5
    more = sum(row["cost_usd"] for row in project.rows()) - spent
    assert again.at_most.cost_usd is not None
    assert 0 < more <= again.at_most.cost_usd


def test_a_forecast_changes_nothing(made: MadeProject, model: ModelDouble) -> None:
    project = made.having(JUDGE, LATENCY)
    versions = project.versions()
    found = forecasts(project.settings, WINDOW, ["stage_latency", "safety"], ScorerOptions(retry_failed=True))
    assert [each.to_score for each in found] == [len(IDS), len(IDS)]
    assert model.requests == []
    assert project.versions() == versions
    assert project.rows() == []
