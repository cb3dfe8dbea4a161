"""What tests share: one engine, and one store of the recorded conversations, each made once a run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.windows import Window

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for variable in ("MLFLOW_TRACKING_URI", "SPARK_REMOTE", "MONITORING_CONFIG", "DAGSTER_HOME"):
    os.environ.pop(variable, None)

RECORDED = Path(__file__).resolve().parents[2] / "shared"
RECORDED_WINDOW = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))


@pytest.fixture(scope="session")
def spark() -> SparkResource:
    """The embedded engine."""
    return SparkResource()


@pytest.fixture
def lake(tmp_path: Path, spark: SparkResource) -> LakeResource:
    """An empty lake."""
    return LakeResource(location=str(tmp_path / "lake"), spark=spark)


@pytest.fixture(scope="session")
def recorded_conversations() -> list[dict]:
    """The recorded conversations, as they stand in their file."""
    file = RECORDED / "data" / "tau_airline_gpt4o.jsonl"
    if not file.is_file():
        reason = f"the recorded conversations are not at {file}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def recorded_store(recorded_conversations: list[dict], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking URI of a SQLite store with the recorded conversations (experiment `airline`), to read only."""
    folder = tmp_path_factory.mktemp("recorded")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    subprocess.run(
        [
            sys.executable,
            RECORDED / "tools" / "load_tau.py",
            RECORDED / "data" / "tau_airline_gpt4o.jsonl",
            "--tracking-uri",
            uri,
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return uri


@pytest.fixture(scope="session")
def recorded_server(recorded_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` on loopback over the store of the recorded conversations."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [
                Path(sys.executable).parent / "mlflow",
                "server",
                "--backend-store-uri",
                recorded_store,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--workers",
                "1",
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(address, server, folder / "server.log")
            yield address
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=30)


def _wait_until_healthy(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"mlflow server did not start: {log.read_text()[-2000:]}")
