"""Processes that start in milliseconds: forks of one process that has imported the package and runs no thread.

A test that needs a process, for example to kill it, need not wait for seconds of imports. Tests of how a process starts
start it in the ordinary way.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import TimeoutExpired

PRELOADED = [
    "dagster_pipes",
    "deltalake",
    "matplotlib.figure",
    "mlflow.genai.judges",
    "mlflow.genai.scorers",
    "mlflow.store.tracking.sqlalchemy_store",
    "monitoring_pipeline.cli.app",
    "monitoring_pipeline.cli.console",
    "monitoring_pipeline.cli.doctor",
    "monitoring_pipeline.orchestration.backfills",
    "monitoring_pipeline.orchestration.build",
    "monitoring_pipeline.orchestration.databricks_task",
    "monitoring_pipeline.orchestration.runs",
    "pysail.spark",
    "pyspark.sql.connect.session",
]


def context() -> ForkServerContext:
    """The context whose processes are forks of the preloaded one, which the first process starts."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(PRELOADED)
    return forkserver


class Fork:
    """A process that runs `entry(*arguments)`, with the methods of subprocess.Popen that tests use.

    It leads a process group of its own. Its environment is `environment` alone, and its output goes to the files.
    """

    def __init__(
        self,
        entry: Callable[..., object],
        arguments: Sequence[object],
        folder: Path,
        environment: Mapping[str, str],
        stdout: Path,
        stderr: Path,
    ) -> None:
        self._process = context().Process(
            target=_run, args=(entry, arguments, folder, dict(environment), stdout, stderr)
        )
        self._process.start()
        self._lock = threading.Lock()  # the exit code can be read once
        assert self._process.pid is not None
        self.pid = self._process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)  # until it leads its group, so that a test can kill that

    def poll(self) -> int | None:
        """The exit code, or None while it runs; of a process that was killed, less than 0."""
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end, at most so many seconds, and return the exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    @property
    def returncode(self) -> int | None:
        """As `poll`."""
        return self.poll()


def _run(
    entry: Callable[..., object],
    arguments: Sequence[object],
    folder: Path,
    environment: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> None:
    os.setsid()
    os.chdir(folder)
    for number, file in ((1, stdout), (2, stderr)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        entry(*arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # which multiprocessing leaves out
