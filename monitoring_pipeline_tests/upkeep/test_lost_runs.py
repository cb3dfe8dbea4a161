"""Runs whose process is gone are marked as failed, and no others."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing import parent_process
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.events import EngineEventData
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.utils import make_new_run_id

from monitoring_pipeline.keys import ASSETS, NO_PREFIX, PROCESS_TAG, Names
from monitoring_pipeline.upkeep import others
from monitoring_pipeline.upkeep.lost_runs import end_lost_runs, process_tags, record_process, recorded
from monitoring_pipeline_tests.forks import Fork

TEAM = Names(key_prefix=("team",))


@pytest.fixture
def instance(dagster_home: Path) -> Iterator[dg.DagsterInstance]:
    """An instance whose runs are in files."""
    with dg.DagsterInstance.get() as instance:
        yield instance


def begun(
    instance: dg.DagsterInstance,
    names: Names = NO_PREFIX,
    job: str = "archive_job",
    asset: dg.AssetKey | None = None,
    status: DagsterRunStatus = DagsterRunStatus.STARTED,
    **changes: object,
) -> str:
    """A run in progress that has recorded this process, with changes of the record; returns its id."""
    run_id = make_new_run_id()
    tags = process_tags(names, run_id)
    tags[PROCESS_TAG] = json.dumps(json.loads(tags[PROCESS_TAG]) | changes)
    selection = frozenset({asset}) if asset else None
    run = dg.DagsterRun(job_name=job, run_id=run_id, status=status, tags=tags, asset_selection=selection)
    return instance.add_run(run).run_id


def status(instance: dg.DagsterInstance, run_id: str) -> DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def reason(instance: dg.DagsterInstance, run_id: str) -> str:
    [failure] = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    return failure.event_log_entry.message


def test_a_run_fails_once_when_its_process_is_gone(instance: dg.DagsterInstance) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        run = dg.DagsterRun(job_name="monitoring", status=DagsterRunStatus.STARTED)
        instance.add_run(run)
        instance.add_run_tags(run.run_id, process_tags(NO_PREFIX, run.run_id, process.pid))
        assert end_lost_runs(instance, NO_PREFIX) == []
        process.kill()
    assert end_lost_runs(instance, NO_PREFIX) == [run.run_id]
    assert status(instance, run.run_id) == DagsterRunStatus.FAILURE
    assert f"its process {process.pid} is gone: it was killed, or its machine was restarted" in reason(
        instance, run.run_id
    )
    assert end_lost_runs(instance, NO_PREFIX) == []


def test_nobody_waits_for_a_run_whose_process_is_killed_meanwhile(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(others, "PATIENCE", timedelta(seconds=30))
    waited: list[str] = []
    with subprocess.Popen(["sleep", "600"]) as process:
        run_id = begun(instance)
        instance.add_run_tags(run_id, process_tags(NO_PREFIX, run_id, process.pid))

        def kill(message: str) -> None:
            waited.append(message)
            process.kill()

        others.wait_for_others(instance, NO_PREFIX, None, datetime.now(UTC) + timedelta(hours=1), kill)
    assert waited == [f"waiting for run {run_id} of archive_job"]
    assert status(instance, run_id) == DagsterRunStatus.FAILURE


@pytest.mark.parametrize("state", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING])
def test_a_run_whose_process_id_was_given_to_another_process_fails(
    instance: dg.DagsterInstance, state: DagsterRunStatus
) -> None:
    lost, alive = begun(instance, status=state, started="earlier"), begun(instance, status=state)
    assert end_lost_runs(instance, NO_PREFIX) == [lost]
    assert status(instance, alive) == state


@pytest.mark.parametrize(
    ("names", "job", "asset", "changes"),
    [
        pytest.param(NO_PREFIX, "archive_job", None, {"host": "elsewhere"}, id="of another host"),
        pytest.param(NO_PREFIX, "archive_job", None, {"run_id": "repeated"}, id="with the tags of the run it repeats"),
        pytest.param(NO_PREFIX, "archive_job", None, {"pid": "none"}, id="with a record that cannot be read"),
        pytest.param(NO_PREFIX, "invoices_job", None, {}, id="of a job of somebody else"),
        pytest.param(TEAM, "team_archive_job", None, {}, id="of another pipeline"),
        pytest.param(TEAM, ASSETS, None, {}, id="of another pipeline, of all its assets"),
        pytest.param(TEAM, ASSETS, dg.AssetKey(["team", "archived_traces"]), {}, id="of another pipeline, of an asset"),
    ],
)
def test_it_leaves_a_run_alone(
    instance: dg.DagsterInstance, names: Names, job: str, asset: dg.AssetKey | None, changes: dict[str, object]
) -> None:
    run_id = begun(instance, names, job, asset, **{"started": "earlier", **changes})
    assert end_lost_runs(instance, NO_PREFIX) == []
    assert status(instance, run_id) == DagsterRunStatus.STARTED


def test_it_leaves_a_run_without_a_record_alone(instance: dg.DagsterInstance) -> None:
    run = instance.add_run(
        dg.DagsterRun(job_name="archive_job", status=DagsterRunStatus.STARTED, tags={**NO_PREFIX.tags})
    )
    assert end_lost_runs(instance, NO_PREFIX) == []
    assert status(instance, run.run_id) == DagsterRunStatus.STARTED


def test_with_a_prefix_only_runs_with_that_prefix_fail(instance: dg.DagsterInstance) -> None:
    ours = [
        begun(instance, TEAM, "team_archive_job", started="earlier"),
        begun(instance, TEAM, ASSETS, dg.AssetKey(["team", "archived_traces"]), started="earlier"),
    ]
    begun(instance, started="earlier")
    assert sorted(end_lost_runs(instance, TEAM)) == sorted(ours)


def test_a_run_that_ends_meanwhile_keeps_its_result(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = begun(instance, started="earlier")
    listed = instance.get_runs()
    instance.report_run_canceled(listed[0])
    monkeypatch.setattr(instance, "get_runs", lambda filters: listed)
    assert end_lost_runs(instance, NO_PREFIX) == []
    assert status(instance, run_id) == DagsterRunStatus.CANCELED


def test_without_runs_in_progress_it_asks_once(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    instance.report_run_canceled(dg.DagsterRun(job_name="archive_job", run_id=begun(instance, started="earlier")))
    asked = []
    connect = SqliteRunStorage.connect
    monkeypatch.setattr(SqliteRunStorage, "connect", lambda self: asked.append("runs") or connect(self))
    monkeypatch.setattr(instance.event_log_storage, "_connect", lambda shard: asked.append(shard))
    assert end_lost_runs(instance, NO_PREFIX) == []
    assert asked == ["runs"]


def record_it(run_id: str, file: Path) -> None:
    """What a step does, in a process of its own; writes the id of that process and its parent's to the file."""
    with dg.DagsterInstance.get() as instance:
        record_process(instance, run_id, NO_PREFIX)
    parent = parent_process()
    assert parent is not None
    file.write_text(json.dumps([os.getpid(), parent.pid]))


@pytest.mark.parametrize("reports", ["the parent", "a process of another host"])
def test_a_step_in_a_process_of_its_own_records_the_process_of_the_run(
    instance: dg.DagsterInstance, tmp_path: Path, reports: str
) -> None:
    run = instance.add_run(dg.DagsterRun(job_name="archive_job", status=DagsterRunStatus.STARTED))
    pid = os.getpid() if reports == "the parent" else 1
    instance.report_engine_event("Executing steps", run, EngineEventData.multiprocess(pid))
    file, output = tmp_path / "ids", tmp_path / "output"
    step = Fork(record_it, (run.run_id, file), tmp_path, os.environ, output, output)
    assert step.wait(60) == 0, output.read_text()
    after = instance.get_run_by_id(run.run_id)
    assert after is not None
    record = recorded(after)
    assert json.loads(file.read_text()) == [step.pid, os.getpid()]
    assert (record.pid if record else None) == (os.getpid() if reports == "the parent" else None)
    assert end_lost_runs(instance, NO_PREFIX) == []
