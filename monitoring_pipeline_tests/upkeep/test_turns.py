"""Runs that begin during a deletion wait for it; it waits for those that began before; nobody waits for the dead."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from monitoring_pipeline.keys import DELETE, MONITORING, NO_PREFIX, Names
from monitoring_pipeline.orchestration.naming import our_step
from monitoring_pipeline.upkeep import others, turns
from monitoring_pipeline.upkeep.processes import Process
from monitoring_pipeline.upkeep.turns import announced, under_way, wait_for_deletion

FOREIGN = Names(key_prefix=("other",))


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setattr(turns, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(others, "POLL_SECONDS", 0.01)
    return dg.DagsterInstance.ephemeral()


def announce(instance: dg.DagsterInstance, pid: int, seen: datetime | None = None) -> None:
    """Announce a deletion of that process, from another host if `seen`, the time of its last sign, is given."""
    process = Process.of(pid) if seen is None else Process(host="elsewhere 1", pid=pid, started="")
    now = datetime.now(UTC)
    announcement = turns.Announcement(token="t", process=process, at=now, seen=seen or now)
    instance.run_storage.set_cursor_values({turns._key(NO_PREFIX): announcement.model_dump_json()})


@dg.job(name=MONITORING)
def ours() -> None:
    @dg.op
    @our_step(NO_PREFIX)
    def step() -> None:
        dg.OpExecutionContext.get().log.info("the step runs")

    step()


def test_a_step_of_a_run_that_begins_during_a_deletion_waits_until_it_has_ended(instance: dg.DagsterInstance) -> None:
    heard: list[str] = []
    with subprocess.Popen(["sleep", "600"]) as process:
        announce(instance, process.pid)

        def listen(entry: object) -> None:
            message = getattr(entry, "user_message", "")
            heard.append(message)
            if message.startswith("waiting for the deletion"):
                process.kill()

        run_id = "11111111-1111-1111-1111-111111111111"
        instance.add_event_listener(run_id, listen)
        assert ours.execute_in_process(instance=instance, run_id=run_id).success
    waiting = next(n for n, message in enumerate(heard) if message.startswith("waiting for the deletion on request of"))
    assert waiting < heard.index("the step runs")


def test_a_run_that_began_before_a_deletion_goes_on_and_the_deletion_waits_for_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "PATIENCE", timedelta(0))
    before = create_run_for_test(instance, job_name=MONITORING)
    instance.report_run_failed(create_run_for_test(instance, job_name=MONITORING))
    start(instance, before)
    with announced(instance, NO_PREFIX) as at:
        after = create_run_for_test(instance, job_name=MONITORING)
        start(instance, after)
        create_run_for_test(instance, job_name=DELETE, status=dg.DagsterRunStatus.STARTED)  # takes its own turn
        wait_for_deletion(instance, NO_PREFIX, before.run_id, pytest.fail)
        assert others.begun(instance, NO_PREFIX, None, at) == [f"run {before.run_id} of {MONITORING}"]
        instance.report_run_failed(before)
        others.wait_for_others(instance, NO_PREFIX, None, at)
    wait_for_deletion(instance, NO_PREFIX, after.run_id, pytest.fail)


def start(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    instance.report_dagster_event(
        dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_START.value, job_name=run.job_name), run.run_id
    )


def test_two_deletions_take_turns(instance: dg.DagsterInstance) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        announce(instance, process.pid)
        with announced(instance, NO_PREFIX, lambda message: process.kill()):
            found = under_way(instance, NO_PREFIX)
            assert found is not None
            assert found.process.pid == os.getpid()
            assert under_way(instance, FOREIGN) is None
        assert process.wait(10) != 0
    assert under_way(instance, NO_PREFIX) is None


@pytest.mark.parametrize(("silent_for", "is_over"), [(timedelta(0), False), (turns.SILENT * 2, True)])
def test_a_deletion_on_another_host_is_over_when_it_has_been_silent_for_long(
    silent_for: timedelta, is_over: bool, instance: dg.DagsterInstance
) -> None:
    announce(instance, 1, datetime.now(UTC) - silent_for)
    assert (under_way(instance, NO_PREFIX) is None) == is_over


def test_a_deletion_reports_that_it_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "HEARTBEAT", timedelta(milliseconds=50))
    # In a file: a database in memory refuses to be read by one thread while another writes.
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, announced(instance, NO_PREFIX):
        first = under_way(instance, NO_PREFIX)
        assert first is not None
        while (found := under_way(instance, NO_PREFIX)) and found.seen == first.seen:
            time.sleep(0.01)
        assert found is not None
        assert found.seen > first.seen
