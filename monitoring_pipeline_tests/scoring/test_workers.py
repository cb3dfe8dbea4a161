"""Code scorers on the engine's workers return the same results as in this process, and only with the same code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from monitoring_pipeline.errors import EngineError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring.budgets import Purse
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.pending import pending_rows, pending_traces
from monitoring_pipeline.scoring.pool import run_all
from monitoring_pipeline.scoring.registry import ConfiguredScorer, configured, load_scorers
from monitoring_pipeline.scoring.workers import run_in_engine, runs_in_engine
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.odd_scorers import even

ODD = "monitoring_pipeline_tests.odd_scorers"
TIMED = ("assessed_at", "duration_ms")
REMOTE = LakeResource(location="main.monitoring", spark=SparkResource(remote="sc://127.0.0.1:9"))


def loaded(**settings: Any) -> ConfiguredScorer:
    (scorer,) = load_scorers([ScorerSettings(**{"name": "it", "scorer": f"{ODD}:even", **settings})])
    return scorer


def by_trace(results: Any) -> dict[str, tuple[dict[str, Any], bool]]:
    """The results without time-dependent columns and without columns that have no value."""
    return {
        row["trace_id"]: ({k: v for k, v in row.items() if k not in TIMED and v is not None}, applies)
        for row, applies in results
    }


@pytest.fixture(params=["UTC", "Asia/Tokyo"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone of this machine, in which pyspark returns times."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("reference", ["even", "nothing", "word", "length"])
def test_workers_return_the_same_results_as_this_process(archived_lake: LakeResource, reference: str) -> None:
    scorer = replace(loaded(scorer=f"{ODD}:{reference}"), sample_rate=0.5, version=7)
    version = archived_lake.version(AGENT_TRACES)
    here = pending_traces(archived_lake, scorer, RECORDED_WINDOW, version)
    there = pending_rows(archived_lake, scorer, RECORDED_WINDOW, version, [RECORDED_WINDOW])

    expected = by_trace(run_all(scorer, here, "run", Meter(scorer.limits), Purse(archived_lake, scorer)))
    found = by_trace(run_in_engine(scorer, there, "run"))

    assert len(found) > 40
    assert found == expected
    assert {row["trace_hour"] for row, _ in found.values()} <= set(RECORDED_WINDOW.hours())


def test_other_code_on_the_workers_is_refused(archived_lake: LakeResource) -> None:
    scorer = replace(loaded(), digest="0123456789abcdef")
    rows = pending_rows(archived_lake, scorer, RECORDED_WINDOW, archived_lake.version(AGENT_TRACES), [RECORDED_WINDOW])

    with pytest.raises(EngineError, match=r"^scorer 'it' cannot run on the engine's workers: .*digest .* not 0123456"):
        list(run_in_engine(scorer, rows, "run"))


def test_without_due_traces_no_worker_runs(archived_lake: LakeResource) -> None:
    scorer = replace(loaded(), digest="0123456789abcdef", sample_rate=0.0)
    rows = pending_rows(archived_lake, scorer, RECORDED_WINDOW, archived_lake.version(AGENT_TRACES), [RECORDED_WINDOW])

    assert list(run_in_engine(scorer, rows, "run")) == []


def test_code_runs_on_workers_if_the_engine_has_any(archived_lake: LakeResource) -> None:
    assert runs_in_engine(REMOTE, loaded())
    assert not runs_in_engine(archived_lake, loaded())  # the embedded engine is this process


@pytest.mark.parametrize(
    "settings",
    [{"concurrency": 2}, {"max_traces_per_hour": 10}, {"scorer": None, "builtin": "Safety", "model": "openai:/gpt-4o"}],
    ids=["concurrency", "budget", "judge"],
)
def test_a_scorer_with_a_limit_runs_in_this_process(settings: dict[str, Any]) -> None:
    assert not runs_in_engine(REMOTE, loaded(**settings))


def test_a_scorer_without_settings_runs_in_this_process() -> None:
    assert not runs_in_engine(REMOTE, configured(even))
