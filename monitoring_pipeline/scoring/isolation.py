"""Runs code scorers in worker processes, so that one that hangs or crashes costs only its trace.

A fork of this process would copy the engine's locks without its threads, and new interpreters would all import MLflow.
So a template process imports it once, and forks the workers from itself.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from multiprocessing.connection import Connection
from pickle import UnpicklingError
from typing import Any

from mlflow.entities import AssessmentError

from monitoring_pipeline.errors import EngineError
from monitoring_pipeline.scoring.limits import cores
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import SCORER_ERROR, PendingTrace, Result, failed_row
from monitoring_pipeline.scoring.specs import ScorerSpec
from monitoring_pipeline.scoring.worker_process import END, FORK, KILL, NUMBER, Refused, Task, serve
from monitoring_pipeline.text import without_secrets

SCORER_TIMEOUT = "SCORER_TIMEOUT"
SCORER_CRASHED = "SCORER_CRASHED"
LOADING_SECONDS = 600.0  # a scorer's module may load a model
OUTPUT_CHARACTERS = 20_000  # of what a scorer prints for one trace
_STARTING = threading.Lock()


class IsolatedScorer(AbstractContextManager[Callable[[PendingTrace], Result]]):
    """`assess` for a code scorer in worker processes; leaving the context ends the workers that are still busy.

    Threads may share it: each call has a worker of its own.
    """

    def __init__(self, scorer: ConfiguredScorer, dagster_run_id: str) -> None:
        self._scorer = scorer
        self._spec = ScorerSpec.of(scorer)
        self._dagster_run_id = dagster_run_id
        self._busy: set[_Worker] = set()

    def __enter__(self) -> Callable[[PendingTrace], Result]:
        return self.assess

    def __exit__(self, *_: object) -> None:
        for worker in [*self._busy]:
            worker.end(KILL)

    def assess(self, pending: PendingTrace) -> Result:
        """As `runner.assess`; the row has the error SCORER_TIMEOUT or SCORER_CRASHED if the worker had to be replaced.

        Raises:
            EngineError: the worker cannot load the scorer, or has other code for it.
        """
        worker = _workers().take()
        self._busy.add(worker)
        try:
            worker.load(self._spec)
            started = time.perf_counter()
            answer = self._answer(worker, pending)
            duration_ms = (time.perf_counter() - started) * 1000
            if printed := worker.printed():
                sys.stderr.write(f"scorer {self._scorer.name}, trace {pending.trace_id}: {printed}\n")
        finally:
            self._busy.discard(worker)
            _workers().give_back(worker)
        if isinstance(answer, AssessmentError):
            return failed_row(self._scorer, pending, answer, duration_ms, self._dagster_run_id), True
        return answer

    def _answer(self, worker: _Worker, pending: PendingTrace) -> Result | AssessmentError:
        timeout_seconds = self._scorer.limits.timeout_seconds
        try:
            answer = worker.ask(Task(self._spec.key, pending, self._dagster_run_id), timeout_seconds)
        except TimeoutError:
            worker.end(KILL)
            return AssessmentError(SCORER_TIMEOUT, f"no result within timeout_seconds = {timeout_seconds:g}")
        except EOFError:
            return AssessmentError(SCORER_CRASHED, f"the scorer's process {_ending(worker.end(END))}")
        return AssessmentError(SCORER_ERROR, answer.reason) if isinstance(answer, Refused) else answer


class _Worker:
    """A worker process: its connection, and the file that it prints to."""

    def __init__(self, template: _Template) -> None:
        self._template = template
        self._output = tempfile.TemporaryFile(mode="ab+")  # noqa: SIM115 - closed with the worker
        self._loaded: set[str] = set()
        self._exit_code: int | None = None
        self._ending = threading.Lock()
        ours, theirs = socket.socketpair()
        with theirs:
            self._pid = template.fork(theirs.fileno(), self._output.fileno())
        self._connection = Connection(ours.detach())

    @property
    def is_alive(self) -> bool:
        return self._exit_code is None

    def load(self, spec: ScorerSpec) -> None:
        """Load the scorer of `spec` in the worker, unless it is loaded.

        Raises:
            EngineError: it cannot be loaded.
        """
        if spec.key in self._loaded:
            return
        try:
            answer = self.ask(spec, LOADING_SECONDS)
        except (TimeoutError, EOFError):
            answer = Refused(f"it {_ending(self.end(KILL))} while its module was imported")
        if isinstance(answer, Refused):
            self.end(KILL)  # a module that was imported in part stays so
            name = spec.settings.name
            raise EngineError(f"scorer {name!r} cannot run in a worker process: {without_secrets(answer.reason)}")
        self._loaded.add(spec.key)

    def ask(self, message: object, timeout_seconds: float) -> Any:
        """The worker's answer.

        Raises:
            TimeoutError: there is none within the time.
            EOFError: the worker has ended.
        """
        try:
            self._connection.send(message)
            if not self._connection.poll(timeout_seconds):
                raise TimeoutError
            return self._connection.recv()
        except (ConnectionError, UnpicklingError) as error:  # it ended before it read the message
            raise EOFError from error

    def end(self, command: bytes) -> int:
        """End the worker, by END if it has closed its connection; returns its exit code."""
        with self._ending:
            if self._exit_code is None:
                self._exit_code = self._template.end(self._pid, command)
            return self._exit_code

    def printed(self) -> str:
        """What the worker has printed since the last call."""
        size = os.fstat(self._output.fileno()).st_size
        if not size:
            return ""
        self._output.seek(max(0, size - OUTPUT_CHARACTERS))
        text = self._output.read().decode(errors="replace")
        self._output.truncate(0)
        return without_secrets(text).rstrip()

    def close(self) -> None:
        """End the worker if it still lives, and close its files."""
        self._connection.close()
        self.end(END)
        self._output.close()


class _Template:
    """The process that forks the workers; it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said = tempfile.TemporaryFile(mode="a+")  # noqa: SIM115 - as long as the process
        self._commands, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {serve.__module__} import serve; serve({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=[theirs.fileno()],
                # MLflow would look for the caller and try imports for each run of a scorer: 7 ms in place of 0.5.
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,  # Ctrl-C in a terminal is for this process alone
            )

    def fork(self, connection: int, output: int) -> int:
        """Start a worker; returns its process id."""
        return self._answer(lambda: socket.send_fds(self._commands, [FORK], [connection, output]))

    def end(self, worker: int, command: bytes) -> int:
        """End a worker and what it has started; returns its exit code, or less than 0 for a signal."""
        return self._answer(lambda: self._commands.sendall(command + NUMBER.pack(worker)))

    def _answer(self, send: Callable[[], object]) -> int:
        with self._lock:
            try:
                send()
                answer = self._commands.recv(NUMBER.size, socket.MSG_WAITALL)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
        if len(answer) < NUMBER.size:
            raise EngineError(
                f"the process that starts scorers' processes {_ending(self._process.wait())}{self._last()}"
            )
        return NUMBER.unpack(answer)[0]

    def _last(self) -> str:
        """The last line that the template has printed, as the end of a sentence."""
        self._said.seek(0)
        lines = self._said.read().splitlines()
        return f": {without_secrets(lines[-1])}" if lines else ""

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the template and all workers."""
        self._commands.close()
        self._process.wait()


class _Workers:
    """The workers of this process that wait for a trace, at most one for each core."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._template = _Template()
        self._idle: list[_Worker] = []

    def take(self) -> _Worker:
        """A worker for one caller; a new one if all are busy."""
        with self._lock:
            if not self._template.is_alive:  # its workers end with it
                self._template, self._idle = _Template(), []
            return self._idle.pop() if self._idle else _Worker(self._template)

    def give_back(self, worker: _Worker) -> None:
        """Keep the worker for another call, or close it if it has ended or there are enough."""
        with self._lock:
            if worker.is_alive and len(self._idle) < cores():
                self._idle.append(worker)
                return
        worker.close()

    def close(self) -> None:
        """End all processes, unless they belong to the process that this one was forked from."""
        if self._owner == os.getpid():
            self._template.close()


def _workers() -> _Workers:
    """The workers of this process; the first call, of whichever thread, starts the template."""
    with _STARTING:
        return _started()


@cache
def _started() -> _Workers:
    workers = _Workers()
    atexit.register(workers.close)
    return workers


def _forget() -> None:
    """Leave the workers to the process that this one was forked from."""
    _STARTING.release()
    _started.cache_clear()


os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_forget)


def _ending(code: int) -> str:
    """How a process with this exit code ended, such as "ended with exit code 3"."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
