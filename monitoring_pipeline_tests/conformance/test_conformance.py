"""The embedded engine and a Spark cluster return the same rows for each table, transformation and operation of a lake.

MONITORING_CONFORMANCE_TRACES sets how many made-up traces are added to the recorded conversations. With
MONITORING_LONG_TESTS=1 all 48 recorded hours are compared, otherwise the first 30.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from monitoring_pipeline_tests.cluster import SparkCluster
from monitoring_pipeline_tests.conformance.comparison import compare
from monitoring_pipeline_tests.conformance.projects import add_made_up_traces, new_project
from monitoring_pipeline_tests.conformance.work import HOURS

MADE_UP_TRACES = int(os.environ.get("MONITORING_CONFORMANCE_TRACES", "100"))
KINDS = ("tables", "transformations", "operations")
SCORERS = """
[[scorers]]
name = "even"
scorer = "monitoring_pipeline_tests.odd_scorers:even"
compare_with = ["task_success"]

[[scorers]]
name = "tool_errors"
scorer = "monitoring_pipeline.scoring.scorers:tool_errors"
sample_rate = 0.3
filter = "attributes.status = 'OK'"
pass_if = "<= 0"

[[scorers]]
name = "length"
scorer = "monitoring_pipeline_tests.odd_scorers:length"
"""


def test_both_engines_return_the_same_rows(
    cluster: SparkCluster, recorded_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "mlflow.db"
    shutil.copy(recorded_store.removeprefix("sqlite:///"), store)
    add_made_up_traces(store, MADE_UP_TRACES, HOURS)
    embedded = new_project(tmp_path / "embedded", store, str(tmp_path / "lake"), None, SCORERS)
    remote = new_project(tmp_path / "cluster", store, "spark_catalog.conformance", cluster.remote, SCORERS)

    work = "monitoring_pipeline_tests.conformance.work"
    both = [(project, project.start("-m", work, project.config, project.folder)) for project in (embedded, remote)]
    try:
        for project, process in both:
            assert process.wait() == 0, project.log.read_text()[-5000:]
    finally:
        for _, process in both:
            process.kill()
    found = {kind: compare(embedded.folder, remote.folder, kind) for kind in KINDS}

    with capsys.disabled():
        print(f"\n{MADE_UP_TRACES} made-up traces beside the recorded ones; equal on Sail and on a Spark cluster:")
        for kind, compared in found.items():
            print(f"  {compared.results} {kind}, {compared.rows} rows")
    assert [difference for compared in found.values() for difference in compared.differences] == []
    assert all(compared.rows for compared in found.values())
