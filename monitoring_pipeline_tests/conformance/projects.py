"""Stores of made-up traces, and configurations for runs over them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from monitoring_pipeline_tests.cluster import ROOT
from monitoring_pipeline_tests.conftest import RECORDED

CONFIG = """
[mlflow]
tracking_uri = "sqlite:///{store}"

[archive]
source = "mlflow-sql"
start = "2026-01-01T00:00Z"

[lake]
location = "{lake}"

[reports]
location = "{folder}/reports"

[backfill]
max_partitions_per_run = 10000

{spark}
"""


@dataclass(frozen=True)
class Project:
    """A configuration and a Dagster instance in their own folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "monitoring.toml"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """Start Python with these arguments; its output goes to `log`."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "DAGSTER_HOME": str(self.folder / "dagster")},
                stdout=log,
                stderr=log,
            )


def new_project(folder: Path, store: Path, lake: str, remote: str | None, scorers: str) -> Project:
    """A project with its lake at `lake`, on the Spark server at `remote`, or on the embedded engine if that is None."""
    (folder / "dagster").mkdir(parents=True)
    (folder / "dagster" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    project = Project(folder)
    spark = f'[spark]\nremote = "{remote}"' if remote else ""
    project.config.write_text(CONFIG.format(store=store, lake=lake, folder=folder, spark=spark) + scorers)
    return project


def add_made_up_traces(file: Path, made_up_traces: int, hours: int) -> None:
    """Add made-up traces over that many hours from 2026-01-01 to the store; creates the store if it is missing."""
    subprocess.run(
        [
            *(sys.executable, RECORDED / "tools" / "bulk_traces.py", "sql", str(made_up_traces), f"sqlite:///{file}"),
            *("--hours", str(hours)),
        ],
        cwd=file.parent,
        check=True,
        capture_output=True,
    )
