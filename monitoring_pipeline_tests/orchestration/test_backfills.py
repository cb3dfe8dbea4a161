"""Backfills of scorers: by a daemon, in this process and in others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.types import DaemonHeartbeat

from monitoring_pipeline import derivations
from monitoring_pipeline.keys import scorer_key
from monitoring_pipeline.orchestration import backfills
from monitoring_pipeline.orchestration.assets import assessments
from monitoring_pipeline.orchestration.backfills import (
    DOWNSTREAM,
    ScorerOptions,
    address_of,
    daemon_is_running,
    launch_backfills,
    run_backfills,
    run_side_by_side,
)
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import StepEvent
from monitoring_pipeline.tables import HOURLY_QUALITY, SCORER_COVERAGE
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.made_project import IDS, LATENCY, QUALITY, WINDOW, MadeProject, fails_at_once, scorer

ODD = "monitoring_pipeline_tests.odd_scorers"
EVEN, NUMBER, DEADLY = (scorer(name, f"{ODD}:{name}") for name in ("even", "number", "deadly"))
HOURS = ["2026-01-01-05:00", "2026-01-01-06:00", "2026-01-01-07:00", "2026-01-01-08:00"]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def ignored(event: StepEvent) -> None:
    """Ignore the event."""


def backfill(
    project: MadeProject, instance: dg.DagsterInstance, *names: str, window: Window = WINDOW, **options: Any
) -> dict[str, str]:
    definitions = build_definitions(project.settings)
    return run_backfills(definitions, project.settings, window, names, ScorerOptions(**options), instance, ignored)


# In this process


def test_a_failing_scorer_does_not_stop_others(
    made: MadeProject, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at_once(monkeypatch, "response_quality")
    events: list[StepEvent] = []
    failed = run_backfills(
        build_definitions(made.settings),
        made.settings,
        WINDOW,
        ["response_quality", "stage_latency"],
        ScorerOptions(),
        instance,
        events.append,
    )
    assert failed == {"assessments/response_quality": "RuntimeError: no disk"}
    assert made.scored("stage_latency") == IDS
    ledger = made.rows(SCORER_COVERAGE)
    assert [(row["scored"], row["pending"]) for row in ledger if row["scorer"] == "stage_latency"] == [(10, 0)] * 4
    assert [(row["scored"], row["pending"]) for row in ledger if row["scorer"] == "response_quality"] == [(0, 10)] * 4
    assert {row["scorer"] for row in made.rows(HOURLY_QUALITY)} >= {"stage_latency"}
    ended = [(event.step, event.kind) for event in events if event.kind in ("success", "failure")]
    assert sorted(ended) == [
        ("assessments/response_quality", "failure"),
        ("assessments/stage_latency", "success"),
        ("hourly_quality", "success"),
        ("scorer_coverage", "success"),
    ]


def test_a_long_window_is_split_into_runs_with_the_same_result(made: MadeProject, instance: dg.DagsterInstance) -> None:
    parts = made.having(QUALITY, LATENCY, max_partitions_per_run=3)
    assert backfill(parts, instance, "stage_latency") == {}
    assert made.scored("stage_latency") == IDS
    runs = {record.run_id for record in _materializations(instance, scorer_key("stage_latency"))}
    assert len(runs) == 2
    assert len(made.rows(HOURLY_QUALITY, "stage_latency")) == 4


def _materializations(instance: dg.DagsterInstance, key: dg.AssetKey) -> list[Any]:
    return [record.event_log_entry for record in instance.fetch_materializations(key, limit=99).records]


@pytest.mark.parametrize("hours_a_run", [168, 2])
def test_newest_first_starts_with_the_latest_hour(
    made: MadeProject, instance: dg.DagsterInstance, hours_a_run: int
) -> None:
    project = made.having(NUMBER, max_partitions_per_run=hours_a_run)
    assert backfill(project, instance, "number", newest_first=True) == {}
    in_order = sorted(project.rows(scorer="number"), key=lambda row: row["assessed_at"])
    hours = [row["trace_hour"] for row in in_order]
    assert len(hours) == 40
    assert hours == sorted(hours, reverse=True)


def test_failed_traces_are_scored_again_on_request(made: MadeProject, instance: dg.DagsterInstance) -> None:
    project = made.having(EVEN)
    for _ in range(2):
        assert backfill(project, instance, "even") == {}
    first = project.rows(scorer="even")
    assert sum(row["error_code"] is not None for row in first) == 8
    assert backfill(project, instance, "even", retry_failed=True) == {}
    second = project.rows(scorer="even")
    again = [row["trace_id"] for row, earlier in zip(second, first, strict=True) if row != earlier]
    assert sorted(again) == sorted(row["trace_id"] for row in first if row["error_code"])


def test_a_higher_rate_only_adds_traces(made: MadeProject, instance: dg.DagsterInstance) -> None:
    few, more = (backfill_at(made, instance, rate) for rate in (0.1, 0.3))
    assert set(few) < set(more) < set(IDS)
    assert {row["sample_rate"] for row in made.rows() if row["trace_id"] in few} == {0.1}
    assert {row["sample_rate"] for row in made.rows() if row["trace_id"] not in few} == {0.3}


def backfill_at(project: MadeProject, instance: dg.DagsterInstance, rate: float) -> list[str]:
    assert backfill(project, instance, "stage_latency", sample_rate=rate) == {}
    return project.scored("stage_latency")


# In other processes


def test_scorers_run_side_by_side_and_a_dead_one_is_named(made: MadeProject, dagster_home: Path) -> None:
    project = made.having(NUMBER, DEADLY, EVEN, max_scorers_at_once=3)
    events: list[StepEvent] = []
    names = ["number", "deadly", "even"]
    failed = run_side_by_side(project.settings, WINDOW, names, ScorerOptions(), events.append)
    assert failed == {"deadly": "its process ended with -9"}
    assert (project.scored("number"), project.scored("even"), project.scored("deadly")) == (IDS, IDS, [])
    ledger = {name: project.rows(SCORER_COVERAGE, name) for name in names}
    assert [row["scored"] + row["failed"] for row in ledger["number"]] == [10] * 4
    assert sum(row["failed"] for row in ledger["even"]) == 8
    assert {row["pending"] for row in ledger["deadly"]} == {10}
    assert len(project.rows(HOURLY_QUALITY, "number")) == len(project.rows(HOURLY_QUALITY, "even")) == 4
    succeeded = [event.step for event in events if event.kind == "success"]
    assert {"assessments/number", "assessments/even", "scorer_coverage", "hourly_quality"} == {*succeeded}
    assert "assessments/deadly" in {event.step for event in events if event.kind == "start"}


def test_results_that_arrive_while_the_ledger_is_computed_do_not_fail_it(
    made: MadeProject, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates concurrent runs of several scorers, each of which computes the ledger of all scorers."""
    other = assessments.score_window
    update, ended = derivations.update_ledger, []

    def update_and_score(lake: Any, scorers: Any, window: Any) -> int:
        count = update(lake, scorers, window)
        if not ended:
            ended.append(True)
            monkeypatch.setattr("monitoring_pipeline.scoring.run.update_ledger", lambda *_, **__: 0)
            other(lake, next(each for each in scorers if each.name == "response_quality"), window, "another run")
        return count

    monkeypatch.setattr(derivations, "update_ledger", update_and_score)
    assert backfill(made, instance, "stage_latency") == {}
    assert {row["scored"] for row in made.rows(SCORER_COVERAGE, "response_quality")} == {10}


# By a daemon


def test_a_daemon_counts_as_running_after_a_recent_heartbeat(dagster_home: Path) -> None:
    with dg.DagsterInstance.get() as instance:

        def beat(daemon: str, seconds_ago: float) -> bool:
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, daemon, "an id", []))
            return daemon_is_running(instance)

        instance.wipe_daemon_heartbeats()
        assert not daemon_is_running(instance)
        assert not beat("SCHEDULER", 1)
        assert beat("BACKFILL", 1)
        assert not beat("BACKFILL", 200)  # a UI that was closed minutes ago
        instance.wipe_daemon_heartbeats()


def test_a_backfill_of_each_scorer_is_requested_and_the_daemon_runs_it(
    made: MadeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    monkeypatch.setenv("MONITORING_CONFIG", str(made.configure()))
    options = ScorerOptions(sample_rate=0.5, newest_first=True)
    names = ["response_quality", "stage_latency"]
    definitions = build_definitions(made.settings)
    with dg.DagsterInstance.get() as instance:
        launched = launch_backfills(definitions, made.settings, WINDOW, names, options, instance)
        graph = definitions.resolve_asset_graph()
        assert {backfill.backfill_id for backfill in instance.get_backfills()} == set(launched.values())
        for name, backfill_id in launched.items():
            requested = instance.get_backfill(backfill_id)
            assert requested is not None
            assert requested.status == BulkActionStatus.REQUESTED
            assert requested.title == f"{name}, 2026-01-01 05:00 to 2026-01-01 09:00 UTC"
            target = requested.get_asset_backfill_data(graph).target_subset
            hours = {key: target.get_partitions_subset(key).get_partition_keys() for key in target.asset_keys}
            assert hours == dict.fromkeys([scorer_key(name), *DOWNSTREAM], HOURS)
            config = {"sample_rate": 0.5, "retry_failed": False, "newest_first": True}
            assert requested.run_config == {"ops": {f"assessments__{name}": {"config": config}}}

        target = ModuleTarget("monitoring_pipeline.definitions", None, None, "pipeline")
        with create_test_daemon_workspace_context(target, instance) as context:
            for _ in range(3):
                assert list(execute_backfill_iteration(context, logging.getLogger(__name__))) == []
                for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])):
                    instance.launch_run(run.run_id, context.create_request_context())
                deadline = time.monotonic() + 60
                while not all(run.is_finished for run in instance.get_runs()) and time.monotonic() < deadline:
                    time.sleep(0.05)
        assert {backfill.status for backfill in instance.get_backfills()} == {BulkActionStatus.COMPLETED_SUCCESS}
        assert all(run.is_success for run in instance.get_runs())
    for name in names:
        scored = made.scored(name)
        assert 0 < len(scored) < 40
        assert len(made.rows(HOURLY_QUALITY, name)) > 0
        assert sum(row["scored"] for row in made.rows(SCORER_COVERAGE, name)) == len(scored)


def test_a_backfill_has_an_address_if_the_ui_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Ui) as server:
        ui = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(backfills, "LOCAL_UI", ui)
        threading.Thread(target=server.handle_request).start()
        assert address_of("abc") == f"{ui}/runs/b/abc"
    assert address_of("abc") == "the Dagster UI, under Runs, Backfills: abc"


class Ui(BaseHTTPRequestHandler):
    """Answers requests for the version as the Dagster UI does."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/server_info" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
