"""Backfills from notebooks, in this process or by a daemon, and their errors."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import monitoring_pipeline.orchestration.backfills
from monitoring_pipeline.api import backfill_historical_metrics, backfill_workflow
from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.tables import HOURLY_QUALITY, SCORER_COVERAGE
from monitoring_pipeline.windows import HOUR
from monitoring_pipeline_tests.made_project import IDS, WINDOW, MadeProject, fails_at_once
from monitoring_pipeline_tests.sources.stores import START


def test_past_traces_are_scored_once(made: MadeProject, dagster_home: Path) -> None:
    start, end = (moment.astimezone().replace(tzinfo=None) for moment in (START + HOUR, START + 3 * HOUR))
    backfill_historical_metrics("stage_latency", start, end, settings=made.settings)
    assert made.scored("stage_latency") == IDS[10:30]
    assert len(made.rows(HOURLY_QUALITY, "stage_latency")) == 2
    assert {row["scored"] for row in made.rows(SCORER_COVERAGE, "stage_latency")} == {10}
    first = made.rows()

    backfill_historical_metrics("stage_latency", WINDOW.start, WINDOW.end, settings=made.settings)
    assert made.scored("stage_latency") == IDS
    assert [row for row in made.rows() if row["trace_id"] in IDS[10:30]] == first
    assert made.scored("response_quality") == []


def test_a_given_rate_replaces_the_scorers_own(made: MadeProject, dagster_home: Path) -> None:
    backfill_historical_metrics("stage_latency", WINDOW.start, WINDOW.end, sample_rate=0.5, settings=made.settings)
    assert 0 < len(made.scored("stage_latency")) < 40
    assert {row["sample_rate"] for row in made.rows()} == {0.5}


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_an_invalid_rate_is_refused_in_one_line(made: MadeProject, dagster_home: Path, rate: float) -> None:
    with pytest.raises(MonitoringError, match=r"^sample rate .*: must be from 0 to 1$"):
        backfill_historical_metrics("stage_latency", WINDOW.start, WINDOW.end, rate, settings=made.settings)
    assert made.rows() == []


def test_batches_of_days_cover_everything_and_a_failing_scorer_does_not_stop_others(
    made: MadeProject, dagster_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = []
    run = monitoring_pipeline.orchestration.backfills.run_backfills

    def watched(definitions: dg.Definitions, settings: Any, window: Any, *arguments: Any) -> dict[str, str]:
        windows.append(window)
        return run(definitions, settings, window, *arguments)

    monkeypatch.setattr(monitoring_pipeline.orchestration.backfills, "run_backfills", watched)
    fails_at_once(monkeypatch, "response_quality")
    end = START + timedelta(days=1, hours=3)
    names = ["response_quality", "stage_latency"]
    failed = backfill_workflow(names, WINDOW.start, end, batch_size_days=1, settings=made.settings)
    assert failed == {"assessments/response_quality": "RuntimeError: no disk"}
    assert [(window.start, window.end) for window in windows] == [
        (START, START + 24 * HOUR),
        (START + 24 * HOUR, end),
    ]
    assert made.scored("stage_latency") == IDS
    assert made.scored("response_quality") == []
    with pytest.raises(MonitoringError, match=r"^assessments/response_quality: RuntimeError: no disk$"):
        backfill_historical_metrics("response_quality", WINDOW.start, WINDOW.end, settings=made.settings)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_zero_days_is_refused_in_one_line(made: MadeProject, dagster_home: Path, size: int) -> None:
    with pytest.raises(MonitoringError, match=rf"^batch_size_days = {size}: must be at least 1$"):
        backfill_workflow(["stage_latency"], WINDOW.start, WINDOW.end, batch_size_days=size, settings=made.settings)


def test_an_unknown_scorer_is_refused_in_one_line_and_nothing_runs(made: MadeProject, dagster_home: Path) -> None:
    line = r"^no scorer latency; configured are response_quality, stage_latency$"
    with pytest.raises(SettingsError, match=line):
        backfill_historical_metrics("latency", WINDOW.start, WINDOW.end, settings=made.settings)
    with pytest.raises(SettingsError, match=line):
        backfill_workflow(["latency", "stage_latency"], WINDOW.start, WINDOW.end, settings=made.settings)
    assert made.rows() == []


def test_a_running_daemon_gets_the_backfill(
    made: MadeProject, dagster_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(monitoring_pipeline.orchestration.backfills, "daemon_is_running", lambda instance: True)
    monkeypatch.setattr(monitoring_pipeline.orchestration.backfills, "LOCAL_UI", "http://127.0.0.1:9")
    backfill_historical_metrics("stage_latency", WINDOW.start, WINDOW.end, settings=made.settings)
    with dg.DagsterInstance.get() as instance:
        backfill_id = instance.get_backfills(limit=1)[0].backfill_id
    assert capsys.readouterr().out == (
        f"stage_latency: launched; watch it at the Dagster UI, under Runs, Backfills: {backfill_id}\n"
    )
    assert made.rows() == []
