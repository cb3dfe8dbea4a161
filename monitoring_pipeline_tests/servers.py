"""An `mlflow server` on loopback over a store of the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitoring_pipeline_tests import services


def wait_until_up(name: str, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the address answers; fail with the end of the log if the process ends or takes too long."""
    deadline = time.monotonic() + 240  # enough for a busy machine
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"{name} did not start: {log.read_text()[-2000:]}")


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """A server over the store at `store_uri`, with its log in `folder`; it can be stopped and started again."""

    def __init__(self, store_uri: str, folder: Path):
        self.store_uri, self.folder = store_uri, folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and return when it answers."""
        services.starting("an mlflow server")
        command = [Path(sys.executable).parent / "mlflow", "server", "--backend-store-uri", self.store_uri]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until_up("mlflow server", f"{self.uri}/health", self.process, self.folder / "server.log")

    def stop(self) -> None:
        """Kill the server, because a clean shutdown takes 20 seconds."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


@contextmanager
def running(store_uri: str, folder: Path) -> Iterator[MlflowServer]:
    """A server over the store for the length of a `with` block."""
    server = MlflowServer(store_uri, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
