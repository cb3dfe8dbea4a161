"""Faults that strike while a step runs: inside a write, between two writes, at the source, at the judge.

A fault strikes when the step passes its point number `at`: points are the beginning and the end of each write to a
Delta table, the requests to MLflow, and the requests to the judge.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from monitoring_pipeline_tests.scoring import model_double

if TYPE_CHECKING:
    from monitoring_pipeline_tests.faults.schedule import Step

OF_THE_LAKE = ("kill", "disk full", "no permission", "lake gone", "conflict", "no answer", "half-written", "clock")
OF_MLFLOW = ("500", "429", "400", "404", "garbage", "html", "cut", "torn", "twice", "hang", "drop")
OF_THE_JUDGE = (*model_double.CONTENTS, model_double.STALLS, model_double.DRIPS, model_double.TORN, model_double.CUT)
OF_THE_JUDGE += ("429", "500", "401")
IN_A_CHILD = ("kill", "no permission")
NOBODY = 65534
DISK_BYTES = 48 * 2**20
JUMPS = {
    "a year back": timedelta(days=-365),
    "hours back": timedelta(hours=-3),
    "minutes ahead": timedelta(minutes=5),
    "weeks ahead": timedelta(days=40),
}


@dataclass(frozen=True)
class Fault:
    """A fault that strikes at a point. `how` is its kind among several, `size` its length (ms, KiB or requests)."""

    kind: str
    at: int = 1
    how: str = ""
    size: int = 0

    @property
    def name(self) -> str:
        """The kind with its `how`."""
        return f"{self.kind} {self.how}".rstrip()

    def __str__(self) -> str:
        return f"{self.name} at point {self.at}, size {self.size}"


def draw_fault(draw: random.Random, step: Step, kinds: tuple[str, ...] = ()) -> Fault:
    """A fault that can strike the step; of one of `kinds`, if given."""
    if not kinds and step.over_http:
        return Fault("mlflow", draw.randint(1, 6), draw.choice(OF_MLFLOW), draw.choice((1, 1, 2, 99)))
    if not kinds and step.action == "judge":
        return Fault("judge", draw.randint(1, 4), draw.choice(OF_THE_JUDGE), draw.choice((1, 3, 99)))
    if step.command:
        kinds = ("kill",)
    kind = draw.choice(kinds or OF_THE_LAKE)
    how = draw.choice([*JUMPS]) if kind == "clock" else ""
    return Fault(kind, draw.choice((1, 1, 2, 2, 3, 4, 5, 7)), how, draw.choice((0, 0, 1, 5, 20, 60)))


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Make `folder` a disk of its own of a fixed size; yields False where this process may not mount one."""
    folder.mkdir(exist_ok=True)
    options = f"size={DISK_BYTES},mode=755"
    is_mounted = (
        shutil.which("mount") is not None
        and subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", folder], capture_output=True).returncode
        == 0
    )
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def struck(fault: Fault, lake: Path, on_disk: bool) -> Iterator[None]:
    """Let the fault of the lake strike the work of this process within the block; afterwards its cause is gone."""
    with contextlib.ExitStack() as stack:
        match fault.kind:
            case "kill":
                stack.enter_context(_at_point(fault.at, lambda: _kill_in(fault.size)))
            case "disk full":
                stack.enter_context(_full_disk(lake.parent, fault.size) if on_disk else _short_files(fault.size))
            case "no permission":
                stack.enter_context(_no_permission(lake))
            case "lake gone":
                stack.enter_context(_gone(lake, fault.at))
            case "conflict":
                stack.enter_context(_conflicts(1 + fault.size % 19))
            case "no answer":
                stack.enter_context(_unanswered(fault.at))
            case "half-written":
                stack.enter_context(_at_point(fault.at, lambda: _leave_halves(lake)))
            case "clock":
                stack.enter_context(clock_off(JUMPS[fault.how]))
        yield


@contextmanager
def _at_point(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Act when a write to a table begins or ends for the `number`th time."""
    from monitoring_pipeline.resources.delta_folders import DeltaFolders

    points, write = itertools.count(1), DeltaFolders._retried

    def passing() -> None:
        if next(points) == number:
            act()

    def passed(self: DeltaFolders, table: Any, attempt: Any) -> Any:
        passing()
        written = write(self, table, attempt)
        passing()
        return written

    with mock.patch.object(DeltaFolders, "_retried", passed):
        yield


def _kill_in(milliseconds: int) -> None:
    if milliseconds:
        threading.Timer(milliseconds / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _full_disk(folder: Path, free_kib: int) -> Iterator[None]:
    ballast = folder / "ballast"
    size = shutil.disk_usage(folder).free - free_kib * 1024
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def _short_files(kib: int) -> Iterator[None]:
    """No file grows beyond so many KiB: EFBIG where a full disk answers ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _no_permission(lake: Path) -> Iterator[None]:
    """The lake can be read, but not written: root becomes nobody, in a process that ends after it."""
    if os.geteuid() == 0:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        yield
        return
    folders = [lake, *(path for path in lake.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


@contextmanager
def _gone(lake: Path, number: int) -> Iterator[None]:
    """The folder disappears at the point, and returns at the end in place of what was written meanwhile."""
    away = lake.with_name(f"{lake.name}-away")
    with _at_point(number, lambda: lake.rename(away)):
        try:
            yield
        finally:
            if away.exists():
                shutil.rmtree(lake, ignore_errors=True)
                away.rename(lake)


@contextmanager
def _conflicts(count: int) -> Iterator[None]:
    """The first `count` commits come too late, each after another process's."""
    import deltalake
    from deltalake.exceptions import CommitFailedError

    write, left = deltalake.write_deltalake, itertools.count(count, -1)

    def late(*arguments: Any, **named: Any) -> None:
        if next(left) > 0:
            raise CommitFailedError("another process has committed")
        write(*arguments, **named)

    with mock.patch.object(deltalake, "write_deltalake", late):
        yield


@contextmanager
def _unanswered(number: int) -> Iterator[None]:
    """The `number`th commit is done, but its caller hears an error."""
    import deltalake

    write, commits = deltalake.write_deltalake, itertools.count(1)

    def unanswered(*arguments: Any, **named: Any) -> None:
        write(*arguments, **named)
        if next(commits) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with mock.patch.object(deltalake, "write_deltalake", unanswered):
        yield


def _leave_halves(lake: Path) -> None:
    """What a killed writer leaves: half a file of rows, and a commit that did not get its name."""
    for log in lake.glob("*/_delta_log"):
        (log.parent / "date=2026-01-01").mkdir(exist_ok=True)
        (log.parent / "date=2026-01-01" / f"part-{os.urandom(8).hex()}.parquet").write_bytes(b"PAR1 and no end")
        (log / f"_commit_{os.urandom(8).hex()}.json.tmp").write_bytes(b'{"add": {"pa')


@contextmanager
def clock_off(jump: timedelta) -> Iterator[None]:
    """The clock of this process is off by `jump` for the modules of the package."""

    class _Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, datetime)

    class Off(datetime, metaclass=_Kind):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + jump

    modules = [module for name, module in [*sys.modules.items()] if name.startswith("monitoring_pipeline.")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            if vars(module).get("datetime") is datetime:
                stack.enter_context(mock.patch.object(module, "datetime", Off))
        yield


class FaultyMlflow:
    """MLflow's own server application over one store, in a thread; answers `fault` in place of some requests."""

    hang_seconds = 3.0

    def __init__(self) -> None:
        from mlflow.server import app, handlers
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, type: str, message: str, *arguments: Any) -> None:
                """Log nothing."""

        self._application, self._handlers = app.wsgi_app, handlers
        self._fault: Fault | None = None
        self._requests = itertools.count(1)
        self._last: dict[str, tuple[str, list[tuple[str, str]], bytes]] = {}
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def serve(self, store_uri: str) -> None:
        """Serve this store from now on."""
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        # MLflow's own way to set it would make it the tracking URI of this process, too.
        self._handlers.__dict__["_tracking_store"] = SqlAlchemyStore(store_uri, tempfile.gettempdir())

    @contextmanager
    def struck(self, fault: Fault | None) -> Iterator[None]:
        """Answer `fault.how` to the requests from number `at` on, `size` of them."""
        self._fault, self._requests = fault, itertools.count(1)
        self._last.clear()
        try:
            yield
        finally:
            self._fault = None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        fault, number, path = self._fault, next(self._requests), environ["PATH_INFO"]
        is_struck = fault is not None and fault.at <= number < fault.at + fault.size
        how = fault.how if fault and is_struck else ""
        text = [("Content-Type", "text/html")]
        match how:
            case status if status.isdigit():
                body = b'{"error_code": "INTERNAL_ERROR", "message": "struck"}'
                start_response(f"{status} struck", [("Content-Type", "application/json")])
                return [body]
            case "garbage":
                start_response("200 OK", text)
                return [bytes(range(256))]
            case "html":
                start_response("200 OK", text)
                return [b"<!doctype html><title>Sign in</title>"]
            case "hang":
                time.sleep(self.hang_seconds)
                environ["werkzeug.socket"].shutdown(2)
            case "drop":
                environ["werkzeug.socket"].shutdown(2)
        status, headers, body = self._real(environ)
        if how == "twice":
            status, headers, body = self._last.get(path, (status, headers, body))
        self._last[path] = (status, headers, body)
        if how == "cut":
            body = body[: len(body) // 2]
        length = len(body)
        named = [(name, value) for name, value in headers if name != "Content-Length"]
        if how == "torn":
            body = body[: len(body) // 2]
            named.append(("Connection", "close"))
        start_response(status, [*named, ("Content-Length", str(length))])
        return [body]

    def _real(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        from werkzeug.test import run_wsgi_app

        chunks, status, headers = run_wsgi_app(self._application, environ, buffered=True)
        return status, [*headers], b"".join(chunks)
