"""Traces arrive while a deployment runs unattended: deploy/start on the test's own PostgreSQL server.

MONITORING_SCENARIO_SECONDS sets how long traces arrive. With MONITORING_LONG_TESTS=1 the test also runs with `make ui`
beside an `mlflow server`, both on SQLite.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient
from mlflow.entities import TraceState
from mlflow.tracing.client import TracingClient

from monitoring_pipeline.windows import HOUR, floor_hour
from monitoring_pipeline_tests import postgres, servers
from monitoring_pipeline_tests.servers import free_port, wait_until_up
from monitoring_pipeline_tests.sources.stores import Store

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECONDS = float(os.environ.get("MONITORING_SCENARIO_SECONDS", "20"))
PATIENCE_SECONDS = 400
LONG = "MONITORING_LONG_TESTS" in os.environ
WHY_NOT = "takes minutes; set MONITORING_LONG_TESTS=1"
CONFIG = """
[archive]
start = "{start:%Y-%m-%dT%H:%MZ}"
[lake]
location = "{folder}/lake"
[reports]
location = "{folder}/reports"
[automation]
enabled = true
[sensor]
interval_seconds = 10
current_hour_refresh_minutes = 1
[[scorers]]
name = "tool_errors"
scorer = "monitoring_pipeline.scoring.scorers:tool_errors"
"""


@dataclass(frozen=True)
class Deployment:
    """A running deployment, its files in `folder`."""

    folder: Path
    mlflow: str

    def store(self) -> Store:
        """Its MLflow, with the experiment `made`."""
        client = MlflowClient(self.mlflow, registry_uri=self.mlflow)
        return Store(Path(), TracingClient(self.mlflow), client.create_experiment("made"))

    def archived(self) -> dict[str, str]:
        """The status of each archived trace; fails if one is archived twice."""
        folder = self.folder / "lake" / "agent_traces"
        if not DeltaTable.is_deltatable(str(folder)):
            return {}
        rows = DeltaTable(folder).to_pyarrow_table(columns=["trace_id", "trace_info"]).to_pylist()
        found = {row["trace_id"]: row["trace_info"]["status"] for row in rows}
        assert len(found) == len(rows)
        return found

    def measured(self) -> int:
        """The number of finished traces in `trace_performance`."""
        folder = self.folder / "lake" / "trace_performance"
        if not DeltaTable.is_deltatable(str(folder)):
            return 0
        return sum(status == "OK" for status in DeltaTable(folder).to_pyarrow_table()["status"].to_pylist())

    def kill(self, command: str) -> None:
        """Kill all processes of the deployment that have `command` in their command lines."""
        killed = 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command_line, environment = ((entry / name).read_bytes().decode() for name in ("cmdline", "environ"))
            except (OSError, UnicodeDecodeError):
                continue
            own = f"MONITORING_CONFIG={self.folder / 'monitoring.toml'}\0"
            if command in command_line.replace("\0", " ") and own in environment:
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
        assert killed, f"no process of {command}"

    def made(self, asset: str) -> Counter[str | None]:
        """How many times each hour of the asset was materialized."""
        with dg.DagsterInstance.get() as instance:
            records = instance.fetch_materializations(dg.AssetKey(asset), limit=5000).records
        return Counter(record.partition_key for record in records)


@pytest.fixture
def production(folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """A deployment started by deploy/start."""
    log = folder / "log"
    with postgres.running() as server:
        ports = {name: str(free_port()) for name in ("MLFLOW_PORT", "DAGSTER_PORT", "CODE_PORT")}
        own = {
            "POSTGRES_URL": server.address("").rstrip("/"),
            "DEPLOY_HOME": str(folder),
            "DEPLOY_BIN": str(BIN),
        }
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", server.address("dagster"))
        with started([ROOT / "deploy" / "start"], {**environment, **own, **ports}, log) as process:
            mlflow = f"http://127.0.0.1:{ports['MLFLOW_PORT']}"
            wait_until_up("mlflow", f"{mlflow}/health", process, log)
            wait_until_up("dagster", f"http://127.0.0.1:{ports['DAGSTER_PORT']}/server_info", process, log)
            yield Deployment(folder, mlflow)


@pytest.fixture
def laptop(folder: Path, environment: dict[str, str]) -> Iterator[Deployment]:
    """What `make ui` starts, restarted when it ends, and an `mlflow server`."""
    log, port = folder / "log", str(free_port())
    shutil.copy(ROOT / "dagster.yaml", folder / "dagster")
    dagster = f"{BIN}/dagster dev --workspace {ROOT}/workspace.yaml --port {port}"
    with servers.running(f"sqlite:///{folder / 'mlflow.db'}", folder) as mlflow:
        own = {"MLFLOW_TRACKING_URI": mlflow.uri}
        again = ["bash", "-c", f"while true; do {dagster}; done"]
        with started(again, {**environment, **own}, log) as process:
            wait_until_up("dagster", f"http://127.0.0.1:{port}/server_info", process, log)
            yield Deployment(folder, mlflow.uri)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the deployment, with its configuration and its DAGSTER_HOME, which this process uses too."""
    start = floor_hour(datetime.now(UTC)) - 5 * HOUR
    (tmp_path / "monitoring.toml").write_text(CONFIG.format(start=start, folder=tmp_path), encoding="utf-8")
    (tmp_path / "dagster").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    return tmp_path


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "MONITORING_CONFIG": str(folder / "monitoring.toml")}


@pytest.fixture(params=["production", pytest.param("laptop", marks=pytest.mark.skipif(not LONG, reason=WHY_NOT))])
def deployment(request: pytest.FixtureRequest) -> Deployment:
    return request.getfixturevalue(request.param)


@contextmanager
def started(command: Sequence[str | Path], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program for the length of a `with` block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=120)


def test_the_archive_follows_the_store_unattended_even_if_daemon_and_code_are_killed(deployment: Deployment) -> None:
    store = deployment.store()
    expected, unfinished, number = {}, [], 0
    now = time.monotonic()
    half, end = now + SECONDS / 2, now + SECONDS
    killed = False
    while time.monotonic() < end:
        number += 1
        started = datetime.now(UTC) - (number % 3) * timedelta(hours=1) * (number % 2)  # every other one late
        if number % 5 == 0:
            store.log(number, started=started, state=TraceState.IN_PROGRESS, duration_ms=None)
            unfinished.append((number, started))
        else:
            expected[store.log(number, started=started)] = "OK"
        if not killed and time.monotonic() > half:
            deployment.kill("daemon run")
            deployment.kill("code-server")
            killed = True
        time.sleep(0.5)
    for number, started in unfinished:
        expected[store.log(number, started=started)] = "OK"

    deadline = time.monotonic() + PATIENCE_SECONDS
    while deployment.archived() != expected or deployment.measured() != len(expected):
        assert time.monotonic() < deadline, (len(expected), len(deployment.archived()), deployment.measured())
        time.sleep(0.5)
    archived = deployment.made("archived_traces")
    for asset in ("trace_performance", "hourly_performance", "scorer_coverage"):
        assert all(count <= archived[hour] for hour, count in deployment.made(asset).items()), asset
