"""`monitoring-pipeline backfill` as a user calls it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from monitoring_pipeline import lifecycle
from monitoring_pipeline.orchestration import backfills
from monitoring_pipeline.scoring.sampling import in_sample
from monitoring_pipeline_tests.cli.calling import Call, calling, run_command
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.made_project import FROM, IDS, JUDGE, LATENCY, TO, MadeProject, scorer
from monitoring_pipeline_tests.scoring.model_double import serving

EVEN = scorer("even", "monitoring_pipeline_tests.odd_scorers:even")
RANGE = ("--from", FROM, "--to", TO)


@pytest.fixture
def project(made: MadeProject, dagster_home: Path, monkeypatch: pytest.MonkeyPatch) -> MadeProject:
    """A configured project with the working folder in it."""
    found = made.having(LATENCY, EVEN, JUDGE)
    found.configure()
    monkeypatch.chdir(found.folder)
    return found


@pytest.fixture
def call(project: MadeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling(monkeypatch, capsys, "backfill")


def backfill_ids() -> set[str]:
    with DagsterInstance.get() as instance:
        return {backfill.backfill_id for backfill in instance.get_backfills()}


def test_a_dry_run_prints_figures_and_changes_nothing(
    call: Call, project: MadeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, launched = project.versions(), backfill_ids()
    with serving(monkeypatch) as model:
        done = call(*RANGE, "--scorer", "stage_latency", "--scorer", "safety", "--sample-rate", "0.5", "--dry-run")
        assert model.requests == []
    assert done.code == 0
    head, latency, safety = done.table()
    assert head[:6] == ["scorer", "archived", "eligible", "scored", "failed", "to score"]
    for name, row in (("stage_latency", latency), ("safety", safety)):
        drawn = sum(in_sample(trace_id, name, 0.5) for trace_id in IDS)
        assert row[:6] == [name, "40", f"{drawn}", "0", "0", f"{drawn}"]
    assert latency[6:] == ["none", "none", "", ""]
    assert float(safety[7].replace(",", "")) > 0
    assert project.versions() == before
    assert backfill_ids() == launched


def test_unscored_traces_are_scored_even_by_a_stopped_scorer(call: Call, project: MadeProject) -> None:
    lifecycle.handle("even", project.settings).register().start().stop()
    done = call(*RANGE, "--scorer", "even", "--scorer", "even")
    assert done.code == 0, done.out
    assert project.scored("even") == IDS
    assert project.scored("stage_latency") == []
    assert done.table()[1:] == [["even", "40", "0", "0", "32", "8", "0", "0", "0.500"]]


def test_a_scorer_that_fails_is_named_and_the_exit_code_is_1(
    call: Call, project: MadeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> dict[str, str]:
        return {"assessments/even": "RuntimeError: [red]no disk"}

    monkeypatch.setattr(backfills, "run_side_by_side", fails)
    done = call(*RANGE, "--scorer", "even")
    assert done.code == 1
    assert "failed assessments/even: RuntimeError: [red]no disk" in done.out


def test_a_running_daemon_gets_the_backfill(call: Call, project: MadeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfills, "daemon_is_running", lambda instance: True)
    monkeypatch.setattr(backfills, "address_of", lambda backfill_id: f"<{backfill_id}>")
    arguments = ("--scorer", "even", "--scorer", "stage_latency", "--newest-first", "--retry-failed")
    done = call(*RANGE, *arguments)
    assert done.code == 0
    shown = dict(line.split(": launched; watch it at ") for line in done.out.splitlines())
    assert list(shown) == ["even", "stage_latency"]
    config = {"sample_rate": None, "retry_failed": True, "newest_first": True}
    with DagsterInstance.get() as instance:
        for name, address in shown.items():
            launched = instance.get_backfill(address[1:-1])
            assert launched is not None
            assert launched.run_config == {"ops": {f"assessments__{name}": {"config": config}}}
    assert project.rows() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--scorer'"),
        (("--scorer", "evn"), "--scorer evn: no such scorer; configured are stage_latency, even, safety"),
        (("--scorer", "even", "--sample-rate", "1.5"), "Invalid value for '--sample-rate'"),
        (("--scorer", "even", "--sample-rate", "nan"), "Invalid value for '--sample-rate'"),
        (("--scorer", "even", "--from", "2026-01-01T05:00"), "has no time zone"),
        (("--scorer", "even", "--from", TO, "--to", FROM), "is not before"),
        (("--scorer", "even", "--from", "2020-01-01T00:00Z", "--to", FROM), "before the archive's start"),
    ],
)
def test_wrong_usage_is_reported(call: Call, project: MadeProject, arguments: tuple[str, ...], message: str) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert message in done.error
    assert project.rows() == []


def test_ctrl_c_ends_the_backfill_soon_and_keeps_its_results(
    call: Call, project: MadeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.having(JUDGE).configure()  # the others' modules are not found by another process
    arguments, output = ("backfill", "--scorer", "safety", *RANGE), project.folder / "output"

    def answer(prompt: str) -> dict[str, Any]:
        time.sleep(0.4)
        return {"result": "yes", "rationale": "fine"}

    with serving(monkeypatch) as model:
        model.answer = answer
        running = Fork(run_command, arguments, project.folder, os.environ, output, output)
        while len(model.requests) < 20 and running.poll() is None:
            time.sleep(0.05)
        assert running.poll() is None, output.read_text()
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(60) != 0, output.read_text()
        kept = len(project.scored("safety"))
        assert 8 <= kept < len(IDS)
        assert call(*RANGE, "--scorer", "safety").code == 0
        assert project.scored("safety") == IDS
        assert len(model.requests) <= len(IDS) + 8  # requests in progress were repeated
