"""A loopback double of a Databricks workspace: its REST API of jobs and files, with each task a real process.

It serves the real databricks-sdk. Volumes are folders; because a test cannot mount /Volumes, a task gets these folders
instead of paths below it. `route` adds more routes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import dagster_pipes
import pytest
from dagster_pipes import decode_param, encode_param

from monitoring_pipeline_tests.forks import Fork

TOKEN = "dapi-0f-the-d0uble-7c1e"
# How Databricks starts a Python wheel task: the entry point of that name in the package's metadata. (An editable
# installation has its metadata in two places.)
WHEEL_TASK = """
import importlib.metadata, sys
package, name = sys.argv[1:3]
sys.argv = [name, *sys.argv[3:]]
installed = [found for found in importlib.metadata.distributions() if found.name.replace("-", "_") == package]
entries = [entry for found in installed for entry in found.entry_points if entry.name == name]
if not entries:
    sys.exit(f"package {package} has no entry point {name}")
entries[0].load()()
"""


@dataclass(frozen=True)
class Request:
    """A request as it arrived; `values` are the named groups of its route."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    values: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else {}


@dataclass(frozen=True)
class Answer:
    """A response: JSON, or raw bytes."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Answer]


def _execute(program: str, arguments: list[str]) -> None:
    # Pipes looks once a second whether there are messages to write.
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(seconds / 50)})
    setattr(dagster_pipes, "time", quick)  # noqa: B010 - the type checker knows no module with that name in it
    sys.argv = arguments
    exec(program, {"__name__": "__main__"})


def error(status: int, code: str, message: str) -> Answer:
    """An error in the format of the API."""
    return Answer(status, {"error_code": code, "message": message})


@dataclass
class _Fault:
    answer: Answer
    path: str
    left: int
    carried_out: bool


@dataclass
class JobRun:
    """A submitted run: its only task, and the task's process."""

    run_id: int
    task: dict[str, Any]
    submitted: dict[str, Any]
    folder: Path
    process: Fork
    polls: int = 0
    cancelled: bool = False

    @property
    def output(self) -> str:
        """What the process has written so far."""
        return "".join((self.folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))

    def kill(self) -> None:
        """End the process and its children at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def state(self) -> dict[str, str]:
        """The state that the API returns: pending at first, so that a client has to poll again."""
        self.polls += 1
        code = self.process.poll()
        if code is None:
            return {"life_cycle_state": "PENDING" if self.polls == 1 else "RUNNING", "state_message": ""}
        if self.cancelled:
            result, message = "CANCELED", "Run cancelled"
        else:
            result = "SUCCESS" if code == 0 else "FAILED"
            message = "" if code == 0 else f"Workload failed, see run output for details (exit code {code})"
        return {"life_cycle_state": "TERMINATED", "result_state": result, "state_message": message}


class WorkspaceDouble:
    """The workspace, with all `requests` and `runs`; `program` is the command that starts a task's process."""

    def __init__(self, folder: Path) -> None:
        self.volumes = folder / "Volumes"
        self.deleted = folder / "deleted"
        self.requests: list[Request] = []
        self.runs: dict[int, JobRun] = {}
        self.program = WHEEL_TASK
        self.folder = folder
        self._by_token: dict[str, int] = {}
        self._faults: list[_Fault] = []
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []
        self._lock = threading.Lock()
        self.deleted.mkdir(parents=True)
        self.route("POST", "/api/2.2/jobs/runs/submit", self._submit)
        self.route("GET", "/api/2.2/jobs/runs/get", self._get)
        self.route("GET", "/api/2.2/jobs/runs/get-output", self._get_output)
        self.route("POST", "/api/2.2/jobs/runs/cancel", self._cancel)
        for method, handler in {"PUT": self._write, "GET": self._read, "DELETE": self._delete}.items():
            self.route(method, "/api/2.0/fs/files/Volumes/(?P<path>.+)", handler)
        for method, handler in {"PUT": self._make, "GET": self._list, "DELETE": self._remove}.items():
            self.route(method, "/api/2.0/fs/directories/Volumes/(?P<path>.+)", handler)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.host = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def route(self, method: str, pattern: str, handler: Handler) -> None:
        """Answer requests whose whole path matches `pattern` by `handler`; the latest route that matches counts."""
        self._routes.insert(0, (method, re.compile(pattern), handler))

    def answer_next(self, count: int, answer: Answer, path: str = "", carried_out: bool = False) -> None:
        """Return `answer` to the next requests whose path contains `path`; if `carried_out`, after performing them."""
        self._faults.append(_Fault(answer, path, count, carried_out))

    def folder_of(self, path: str) -> Path:
        """The folder or file that stands for a path below /Volumes."""
        return self.volumes / path.removeprefix("/Volumes/")

    def requests_to(self, path: str) -> list[Request]:
        """The requests to the path."""
        return [request for request in self.requests if request.path == path]

    def close(self) -> None:
        """End the server and the processes of all runs."""
        for run in self.runs.values():
            run.kill()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class RequestHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for the acknowledgement of its head

            def handle_one(self) -> None:
                parts = urlsplit(self.path)
                request = Request(
                    self.command,
                    unquote(parts.path),
                    dict(parse_qsl(parts.query)),
                    dict(self.headers.items()),
                    self.rfile.read(int(self.headers.get("Content-Length") or 0)),
                )
                answer = double._answer(request)
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                content = "application/octet-stream" if isinstance(answer.body, bytes) else "application/json"
                for name, value in {
                    "Content-Type": content,
                    "Content-Length": str(len(body)),
                    **answer.headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_one

            def log_message(self, format: str, *arguments: object) -> None:
                """Log nothing: `requests` has them all."""

        return RequestHandler

    def _answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                return error(403, "403", "Invalid access token.")
            fault = next((fault for fault in self._faults if fault.left and fault.path in request.path), None)
            if fault:
                fault.left -= 1
                if fault.carried_out:
                    self._routed(request)
                return fault.answer
            return self._routed(request)

    def _routed(self, request: Request) -> Answer:
        for method, pattern, handler in self._routes:
            found = pattern.fullmatch(request.path)
            if method == request.method and found:
                values = {name: value or "" for name, value in found.groupdict().items()}
                return handler(Request(**{**vars(request), "values": values}))
        return error(404, "ENDPOINT_NOT_FOUND", f"No API found for '{request.method} {request.path}'")

    def _submit(self, request: Request) -> Answer:
        submitted = request.json
        token = submitted.get("idempotency_token")
        if token in self._by_token:
            return Answer(body={"run_id": self._by_token[token]})
        (task,) = submitted["tasks"]
        environments = {
            environment["environment_key"]: environment for environment in submitted.get("environments", [])
        }
        if "environment_key" in task:
            if task["environment_key"] not in environments:
                return error(400, "INVALID_PARAMETER_VALUE", f"No environment {task['environment_key']}")
        elif not ("existing_cluster_id" in task or "new_cluster" in task):
            return error(400, "INVALID_PARAMETER_VALUE", "A task needs an environment or a cluster")
        run_id = 100 + len(self.runs)
        self.runs[run_id] = self._start(run_id, task, submitted)
        if token:
            self._by_token[token] = run_id
        return Answer(body={"run_id": run_id})

    def _start(self, run_id: int, task: dict[str, Any], submitted: dict[str, Any]) -> JobRun:
        folder = self.folder / f"run-{run_id}"
        folder.mkdir()
        wheel = task["python_wheel_task"]
        parameters = [self._mounted(parameter, folder) for parameter in wheel.get("parameters", [])]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **task.get("new_cluster", {}).get("spark_env_vars", {}),
        }
        (folder / "environment").write_text(json.dumps([environment, parameters]), encoding="utf-8")
        arguments = ["-c", wheel["package_name"], wheel["entry_point"], *parameters]
        process = Fork(_execute, (self.program, arguments), folder, environment, folder / "stdout", folder / "stderr")
        return JobRun(run_id, task, submitted, folder, process)

    def _mounted(self, parameter: str, folder: Path) -> str:
        """The Pipes parameter with folders instead of paths below /Volumes, also within the context it names."""
        if parameter.startswith("--"):
            return parameter
        values = {
            name: f"{self.folder_of(value)}" if name == "path" else value
            for name, value in decode_param(parameter).items()
        }
        context = Path(values["path"])
        if context.is_file():
            copy = folder / "context.json"
            text = context.read_text(encoding="utf-8").replace("/Volumes/", f"{self.volumes}/")
            copy.write_text(text, encoding="utf-8")
            values["path"] = str(copy)
        return encode_param(values)

    def _run(self, run_id: object) -> JobRun | None:
        return self.runs.get(int(str(run_id)))

    def _get(self, request: Request) -> Answer:
        run = self._run(request.query["run_id"])
        if run is None:
            return error(404, "RESOURCE_DOES_NOT_EXIST", "Run does not exist")
        described = {
            "run_id": run.run_id,
            "run_page_url": f"{self.host}/?o=1#job/1/run/{run.run_id}",
            "state": run.state(),
            "tasks": [{"task_key": run.task["task_key"], "run_id": run.run_id + 1000}],
        }
        return Answer(body=described)

    def _get_output(self, request: Request) -> Answer:
        run = self._run(int(request.query["run_id"]) - 1000)
        if run is None:
            return error(400, "INVALID_PARAMETER_VALUE", "Retrieving the output of multiple tasks is not supported")
        lines = (run.folder / "stderr").read_text(encoding="utf-8").strip().splitlines()
        raised = (run.process.poll() or 0) > 0  # a killed process has written no error
        return Answer(body={"error": lines[-1]} if lines and raised else {})

    def _cancel(self, request: Request) -> Answer:
        run = self._run(request.json["run_id"])
        if run is None:
            return error(404, "RESOURCE_DOES_NOT_EXIST", "Run does not exist")
        if run.process.poll() is None:
            run.cancelled = True
            threading.Thread(target=run.kill).start()
        return Answer()

    def _path(self, request: Request) -> Path:
        return self.volumes / request.values["path"]

    def _write(self, request: Request) -> Answer:
        path = self._path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(request.body)
        return Answer(204, b"")

    def _read(self, request: Request) -> Answer:
        path = self._path(request)
        return Answer(body=path.read_bytes()) if path.is_file() else _missing(request)

    def _delete(self, request: Request) -> Answer:
        path = self._path(request)
        if not path.is_file():
            return _missing(request)
        # Kept, so that tests can check its content.
        path.rename(self.deleted / f"{len(list(self.deleted.iterdir()))}-{path.name}")
        return Answer(204, b"")

    def _make(self, request: Request) -> Answer:
        self._path(request).mkdir(parents=True, exist_ok=True)
        return Answer(204, b"")

    def _list(self, request: Request) -> Answer:
        folder = self._path(request)
        if not folder.is_dir():
            return _missing(request)
        contents = [
            {"path": f"/Volumes/{path.relative_to(self.volumes)}", "name": path.name, "is_directory": path.is_dir()}
            for path in sorted(folder.iterdir())
        ]
        return Answer(body={"contents": contents})

    def _remove(self, request: Request) -> Answer:
        folder = self._path(request)
        if not folder.is_dir():
            return _missing(request)
        if any(folder.iterdir()):
            return error(400, "DIRECTORY_NOT_EMPTY", "The directory is not empty")
        folder.rmdir()
        return Answer(204, b"")


def _missing(request: Request) -> Answer:
    return error(404, "NOT_FOUND", f"No such file or directory: {request.path}")


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkspaceDouble]:
    """A workspace whose files are in the folder, named by the environment until the block ends."""
    double = WorkspaceDouble(folder)
    monkeypatch.setenv("DATABRICKS_HOST", double.host)
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    try:
        yield double
    finally:
        double.close()


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.05)


def texts(folder: Path) -> dict[Path, str]:
    """The contents of all files below the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_text(encoding="utf-8", errors="replace") for path in files}
