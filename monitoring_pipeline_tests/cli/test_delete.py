"""`monitoring-pipeline delete` after another command was killed."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus

from monitoring_pipeline.keys import NO_PREFIX
from monitoring_pipeline.orchestration.runs import start_instance
from monitoring_pipeline.upkeep import others
from monitoring_pipeline.upkeep.lost_runs import recorded
from monitoring_pipeline_tests.cli.calling import calling, run_command
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.made_project import FROM, IDS, JUDGE, TO, MadeProject
from monitoring_pipeline_tests.scoring.model_double import serving


def test_it_waits_for_a_running_command_and_not_for_a_killed_one(
    made: MadeProject, dagster_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = made.having(JUDGE)
    project.configure()
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(others, "PATIENCE", timedelta(0))
    call, output = calling(monkeypatch, capsys, "delete"), project.folder / "output"

    def answer(prompt: str) -> dict[str, Any]:
        time.sleep(0.5)
        return {"result": "yes", "rationale": "fine"}

    with serving(monkeypatch) as model:
        model.answer = answer
        arguments = ("run", "--from", FROM, "--to", TO)
        running = Fork(run_command, arguments, project.folder, os.environ, output, output)
        while not model.requests and running.poll() is None:
            time.sleep(0.02)
        assert running.poll() is None, output.read_text()
        refused = call("--trace-id", IDS[0])
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        with DagsterInstance.get() as instance:
            [run] = instance.get_runs()
            assert run.status == DagsterRunStatus.STARTED
            record = recorded(run)
            assert record is not None
            assert record.pid == running.pid
        assert refused.code == 1
        assert f"run {run.run_id} of monitoring may be reading the rows to delete" in refused.error

        done = call("--trace-id", IDS[0])
    assert done.code == 0, done.err
    assert IDS[0] not in {row["trace_id"] for row in project.rows()}
    with start_instance(project.folder, NO_PREFIX) as instance:
        [run] = instance.get_runs()
        assert run.status == DagsterRunStatus.FAILURE
        [failure] = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.RUN_FAILURE).records
    assert f"its process {running.pid} is gone: it was killed" in failure.event_log_entry.message
