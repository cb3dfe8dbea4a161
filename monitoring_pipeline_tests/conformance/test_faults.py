"""A cluster loses one of its processes in the middle of a backfill.

With MONITORING_LONG_TESTS=1 it also loses a worker, and the backfills cover 30 days instead of two.
"""

from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.cluster import SparkCluster
from monitoring_pipeline_tests.conformance.comparison import compare
from monitoring_pipeline_tests.conformance.projects import Project, add_made_up_traces, new_project

LONG = "MONITORING_LONG_TESTS" in os.environ
DAYS, TRACES = (30, 200) if LONG else (2, 120)
SCORER = """
[[scorers]]
name = "even_with_marker"
scorer = "monitoring_pipeline_tests.odd_scorers:even_with_marker"
params = {{ marker = "{marker}", wait_ms = 30 }}
"""
WINDOW = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=DAYS))
BACKFILL = ("-m", "monitoring_pipeline.cli", "backfill", "--scorer", "even_with_marker")
RANGE = ("--from", f"{WINDOW.start:%Y-%m-%dT%H:%MZ}", "--to", f"{WINDOW.end:%Y-%m-%dT%H:%MZ}", "--config")
ARCHIVE = ("-m", "monitoring_pipeline_tests.conformance.archive")
DUMP = ("-m", "monitoring_pipeline_tests.conformance.dump")
# The tables of an archive and a backfill: to make another one on a cluster takes seconds.
WRITTEN = (
    "agent_traces",
    "archived_hours",
    "quarantined_traces",
    "assessments",
    "superseded_assessments",
    "not_applicable",
    "scorer_coverage",
)


@pytest.fixture(scope="module")
def store(recorded_conversations: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of made-up traces."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    add_made_up_traces(file, TRACES, DAYS * 24)
    return file


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables after a backfill without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    project = archived(folder / "project", store, str(folder / "lake"), None)
    backfilled(project)
    return project.folder


@pytest.mark.skipif(not LONG, reason="takes minutes; set MONITORING_LONG_TESTS=1")
def test_a_backfill_continues_after_losing_a_worker(
    cluster: SparkCluster, store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    project = archived(tmp_path / "project", store, "spark_catalog.worker_lost", cluster.remote)
    run = scoring(project, store)

    cluster.kill("worker-0")

    assert run.wait() == 0, project.log.read_text()[-5000:]
    cluster.start_worker(0)
    dumped(project)
    assert compare(undisturbed, project.folder, "tables").differences == []


def test_a_restarted_server_fails_the_run_and_a_retry_completes_it(
    cluster: SparkCluster, store: Path, undisturbed: Path, tmp_path: Path
) -> None:
    project = archived(tmp_path / "project", store, "spark_catalog.server_restarted", cluster.remote)
    run = scoring(project, store)

    cluster.kill("connect")
    cluster.start_connect()

    assert run.wait() == 1, project.log.read_text()[-5000:]
    log = project.log.read_text()
    assert "failed assessments/even_with_marker: " in log
    assert "Traceback" not in log
    backfilled(project)
    assert compare(undisturbed, project.folder, "tables").differences == []


def archived(folder: Path, store: Path, lake: str, remote: str | None) -> Project:
    """A project with all traces of the store in its archive."""
    project = new_project(folder, store, lake, remote, SCORER.format(marker=marker(store)))
    finish(project, *ARCHIVE, project.config)
    return project


def scoring(project: Project, store: Path) -> subprocess.Popen[bytes]:
    """A backfill in the middle of its scoring."""
    marker(store).unlink(missing_ok=True)
    run = project.start(*BACKFILL, *RANGE, project.config)
    while not marker(store).exists():
        assert run.poll() is None, project.log.read_text()[-5000:]
        time.sleep(0.1)
    return run


def backfilled(project: Project) -> None:
    """Complete the backfill and write the tables to files."""
    finish(project, *BACKFILL, *RANGE, project.config)
    dumped(project)


def dumped(project: Project) -> None:
    finish(project, *DUMP, project.config, project.folder, *WRITTEN)


def finish(project: Project, *command: str | Path) -> None:
    assert project.start(*command).wait() == 0, project.log.read_text()[-5000:]


def marker(store: Path) -> Path:
    return store.parent / "began"
