"""The processes that run code scorers: a template that has imported MLflow, and the workers that it forks.

`isolation` starts the template and sends it commands over a socket: a byte, and after END and KILL a process id. Each
worker leads a process group, so that what a scorer has started ends with it, and all end with the process they serve.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from pickle import PicklingError
from typing import Any

from mlflow.entities import Trace, TraceData, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation

from monitoring_pipeline.errors import one_line
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer, configured
from monitoring_pipeline.scoring.runner import PendingTrace, Result, assess
from monitoring_pipeline.scoring.scorers import response_quality
from monitoring_pipeline.scoring.specs import ScorerSpec
from monitoring_pipeline.windows import EPOCH

FORK, END, KILL = b"f", b"e", b"k"
NUMBER = struct.Struct("!i")
COLLECTION_OBJECTS = 50_000  # that a worker makes between two looks for garbage
DYING_SECONDS = 1.0  # from the end of a worker's connection to the end of its process


@dataclass(frozen=True)
class Task:
    """A trace for the scorer that the worker has loaded by this key."""

    scorer: str
    pending: PendingTrace
    dagster_run_id: str


@dataclass(frozen=True)
class Refused:
    """A scorer that cannot be loaded, or a trace that the scorer answered with an interrupt."""

    reason: str


def serve(descriptor: int) -> None:
    """Run the template until the process that it serves closes the socket."""
    commands = socket.socket(fileno=descriptor)
    _warm_up()
    workers: set[int] = set()
    try:
        while True:
            command, descriptors, _, _ = socket.recv_fds(commands, 1, 2)
            if not command:
                return
            if command == FORK:
                worker = _fork(commands, *descriptors)
                workers.add(worker)
                commands.sendall(NUMBER.pack(worker))
            else:
                (worker,) = NUMBER.unpack(commands.recv(NUMBER.size, socket.MSG_WAITALL))
                workers.discard(worker)
                commands.sendall(NUMBER.pack(_end(worker, DYING_SECONDS if command == END else 0.0)))
    finally:
        for worker in workers:
            _end(worker, 0.0)
        os._exit(0)  # without the seconds that Python takes to free all modules


def _warm_up() -> None:
    """Import what the first call of a scorer imports, once for all workers, and keep it out of their collections."""
    info = TraceInfo("tr-0", TraceLocation.from_experiment_id("0"), 0, TraceState.OK)
    scorer = _without_thread(configured(response_quality))
    trace_json = Trace(info, TraceData([])).to_json()
    assess(scorer, PendingTrace("tr-0", EPOCH, None, (trace_json,)), "", Meter(scorer.limits))
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTION_OBJECTS)


def _without_thread(scorer: ConfiguredScorer) -> ConfiguredScorer:
    """The scorer, which MLflow runs in a thread to limit its time, without that: the process is limited already."""
    if getattr(scorer.scorer, "timeout", 0) is None:
        scorer.scorer.timeout = 0
    return scorer


def _end(worker: int, patience_seconds: float) -> int:
    """End a worker and all that it has started; returns its exit code, or less than 0 for a signal."""
    deadline = time.monotonic() + patience_seconds
    while not os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT | os.WNOHANG) and time.monotonic() < deadline:
        time.sleep(0.001)
    for kill in (os.killpg, os.kill):  # the group first exists when the worker has made it
        with suppress(ProcessLookupError, PermissionError):
            kill(worker, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])


def _fork(commands: socket.socket, connection: int, output: int) -> int:
    """Start a worker, which answers on the descriptor `connection` and prints to `output`; returns its process id."""
    worker = os.fork()
    if worker:
        os.close(connection)
        os.close(output)
        return worker
    code = 1
    try:
        os.setsid()
        commands.close()
        for standard in (1, 2):
            os.dup2(output, standard)
        _die_first()
        _work(Connection(connection))
        code = 0
    finally:  # never returns to the template's code
        os._exit(code)


def _die_first() -> None:
    """Have Linux end this process before others when memory runs out."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def _work(connection: Connection) -> None:
    scorers: dict[str, ConfiguredScorer] = {}
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        answer: Any = None
        if isinstance(message, ScorerSpec):
            try:
                scorers[message.key] = _without_thread(message.load())
            except BaseException as error:  # noqa: BLE001 - a module may raise anything when it is imported
                answer = Refused(one_line(error))
        else:
            answer = _assess(scorers[message.scorer], message)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            connection.send(answer)
        except (TypeError, AttributeError, PicklingError) as error:  # of metadata that the scorer has set
            connection.send(Refused(f"its result cannot be sent: {one_line(error)}"))


def _assess(scorer: ConfiguredScorer, task: Task) -> Result | Refused:
    if scorer.settings:
        _limit_memory(scorer.settings.memory_limit_mb)
    try:
        return assess(scorer, task.pending, task.dagster_run_id, Meter(scorer.limits))
    except BaseException as error:  # noqa: BLE001 - `assess` lets interrupts through, which here only a scorer raises
        return Refused(type(error).__name__)


def _limit_memory(limit_mb: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit_mb * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
