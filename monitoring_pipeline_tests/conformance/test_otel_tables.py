"""OpenTelemetry tables of version 2, in the catalog of a cluster, yield the same rows of `agent_traces` as MLflow.

Version 1 and the other sources: sources/test_four_sources.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Trace

from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.cluster import ROOT, SparkCluster
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.sources.test_four_sources import HELD, Rows, held, rows_of

HOURS = 1
FIRST_HOURS = Window(RECORDED_WINDOW.start, RECORDED_WINDOW.start + HOURS * HOUR)
CATALOG = "spark_catalog.default.recorded"


@pytest.fixture(scope="module")
def tracking(recorded_store: str) -> TrackingResource:
    return TrackingResource(tracking_uri=recorded_store, experiments=["airline"])


@pytest.fixture(scope="module")
def cluster_folder(cluster: SparkCluster, recorded_store: str) -> Path:
    """The folder of a cluster with the first hours written to tables, and archived from them to `lake`."""
    script = [sys.executable, "-m", "monitoring_pipeline_tests.sources.archived_tables"]
    subprocess.run(
        [*script, cluster.remote, recorded_store, str(HOURS), str(cluster.folder / "lake")], cwd=ROOT, check=True
    )
    return cluster.folder


@pytest.fixture(scope="module")
def first_hours(tracking: TrackingResource, spark: SparkResource, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of the first hours, archived by MLflow's own client."""
    lake = LakeResource(location=str(tmp_path_factory.mktemp("mlflow")), spark=spark)
    archive_window(ArchiveSettings(), tracking, lake, FIRST_HOURS)
    rows = rows_of(lake, FIRST_HOURS)
    assert rows
    return rows


def json_value(text: str | None) -> Any:
    """The value of a JSON text: unlike version 1, VARIANT distinguishes a text from JSON."""
    return None if text is None else json.loads(text)


def test_a_cluster_archives_the_same_rows_from_its_catalog(
    cluster_folder: Path, first_hours: Rows, spark: SparkResource
) -> None:
    found = rows_of(LakeResource(location=str(cluster_folder / "lake"), spark=spark))
    by_hex = {key.removeprefix(f"trace:/{CATALOG}/"): row for key, row in found.items()}
    assert by_hex.keys() == {key.removeprefix("tr-") for key in first_hours}
    for key, row in first_hours.items():
        mine = by_hex[key.removeprefix("tr-")]
        named = {"trace_id", "trace_info"}
        assert {name: mine[name] for name in HELD if name not in named} == {
            name: row[name] for name in HELD if name not in named
        }
        assert mine["trace_info"] == {**row["trace_info"], "request_id": mine["trace_id"]}
        assert held(mine, json_value) == held(row, json_value)
        assert Trace.from_json(mine["trace_json"]).info.trace_id == mine["trace_id"]


def test_the_embedded_engine_reads_what_the_cluster_wrote(
    cluster_folder: Path, first_hours: Rows, tracking: TrackingResource, lake: LakeResource
) -> None:
    source = ArchiveSettings(source="otel", location=str(cluster_folder / "warehouse" / "recorded"))
    archive_window(source, tracking, lake, FIRST_HOURS)
    found = rows_of(lake)
    assert found.keys() == first_hours.keys()
    for key, row in first_hours.items():
        assert {name: found[key][name] for name in HELD} == {name: row[name] for name in HELD}
        assert held(found[key], json_value) == held(row, json_value)
