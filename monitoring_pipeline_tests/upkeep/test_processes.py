"""Whether a process that was described earlier has ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring_pipeline.upkeep import processes
from monitoring_pipeline.upkeep.processes import Process, this_host


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until the test kills it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_killed_process_is_gone_even_before_its_parent_asks_for_it(sleeping: subprocess.Popen[bytes]) -> None:
    process = Process.of(sleeping.pid)
    assert not process.is_gone
    sleeping.kill()
    os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)  # until it has ended, and leave it as it is
    assert process.is_gone
    sleeping.wait()
    assert process.is_gone


def test_a_process_that_started_at_another_time_is_another_one() -> None:
    assert Process.of(os.getpid()).model_copy(update={"started": "another-boot 1"}).is_gone


def test_a_process_of_another_host_is_never_gone(sleeping: subprocess.Popen[bytes]) -> None:
    process = Process.of(sleeping.pid).model_copy(update={"host": "elsewhere"})
    sleeping.kill()
    sleeping.wait()
    assert not process.is_gone


def test_without_proc_only_the_id_counts(sleeping: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_read", lambda file: "")
    process = Process.of(sleeping.pid)
    assert process.started == ""
    assert not process.is_gone
    sleeping.kill()
    sleeping.wait()
    assert process.is_gone


def test_a_machine_has_the_same_name_after_a_restart_and_a_container_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = f"{Path('/proc/self/ns/pid').readlink()}"
    files = {"/etc/machine-id": "machine", "/proc/sys/kernel/random/boot_id": "boot"}
    monkeypatch.setattr(processes, "_read", files.__getitem__)

    def names() -> list[str]:
        found = []
        for boot in ("first", "second"):
            files["/proc/sys/kernel/random/boot_id"] = boot
            found.append(this_host())
        return found

    monkeypatch.setattr(processes, "MACHINES_NAMESPACE", namespace)
    machine = names()
    assert machine[0] == machine[1]
    files["/etc/machine-id"] = "another machine"
    assert this_host() not in machine
    monkeypatch.setattr(processes, "MACHINES_NAMESPACE", "that of the machine")
    container = names()
    assert len({*container, *machine}) == 3
    assert all(name.endswith(namespace) for name in container)
