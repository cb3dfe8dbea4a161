"""The same traces from each source yield the same rows of `agent_traces`, as far as the source can store them.

Expected rows are those archived by MLflow's own client. The OpenTelemetry tables are written by Databricks' own client,
which leaves out the tag mlflow.artifactLocation and adds the metadata mlflow.migration.sourceExperimentId. Version 2
needs a cluster: conformance/test_otel_tables.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Trace

from monitoring_pipeline.archive.merging import ArchiveCounts
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.sources.archived_tables import ARCHIVED_TRACE, archived_rows, write, write_otel_v1

COMPARED = [name for name in AGENT_TRACES.schema.names if name != "created_at"]
ALL = ArchiveCounts(read=681, written=681, quarantined=0)

Rows = dict[str, dict[str, Any]]


def rows_of(lake: LakeResource, window: Window = RECORDED_WINDOW) -> Rows:
    found = lake.read_columns(AGENT_TRACES, window, *COMPARED).to_pylist(maps_as_pydicts="strict")
    rows = {row["trace_id"]: row for row in found}
    assert len(rows) == len(found)
    return rows


@pytest.fixture(scope="module")
def tracking(recorded_store: str) -> TrackingResource:
    return TrackingResource(tracking_uri=recorded_store, experiments=["airline"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("four sources")


def archived(source: ArchiveSettings, tracking: TrackingResource, folder: Path, spark: SparkResource) -> Rows:
    lake = LakeResource(location=str(folder / f"lake of {source.source}"), spark=spark)
    assert archive_window(source, tracking, lake, RECORDED_WINDOW) == ALL
    return rows_of(lake)


@pytest.fixture(scope="module")
def of_mlflow(tracking: TrackingResource, folder: Path, spark: SparkResource) -> Rows:
    return archived(ArchiveSettings(), tracking, folder, spark)


@pytest.fixture(scope="module")
def of_mlflow_sql(tracking: TrackingResource, folder: Path, spark: SparkResource) -> Rows:
    return archived(ArchiveSettings(source="mlflow-sql"), tracking, folder, spark)


@pytest.fixture(scope="module")
def of_delta(recorded_traces: list[Trace], tracking: TrackingResource, folder: Path, spark: SparkResource) -> Rows:
    write(folder / "archived", archived_rows(recorded_traces), ARCHIVED_TRACE)
    return archived(ArchiveSettings(source="delta", location=str(folder / "archived")), tracking, folder, spark)


@pytest.fixture(scope="module")
def of_otel(recorded_traces: list[Trace], tracking: TrackingResource, folder: Path, spark: SparkResource) -> Rows:
    write_otel_v1(str(folder / "v1"), recorded_traces)
    return archived(ArchiveSettings(source="otel", location=str(folder / "v1")), tracking, folder, spark)


@pytest.mark.parametrize("column", COMPARED)
def test_the_database_yields_the_same_rows_as_mlflow(of_mlflow_sql: Rows, of_mlflow: Rows, column: str) -> None:
    assert {key: row[column] for key, row in of_mlflow_sql.items()} == {
        key: row[column] for key, row in of_mlflow.items()
    }


# ---- the archive of Databricks ----


@pytest.mark.parametrize("column", sorted(set(COMPARED) - {"trace_json", "content_digest", "part_digests"}))
def test_archived_traces_yield_the_same_rows_as_mlflow(of_delta: Rows, of_mlflow: Rows, column: str) -> None:
    assert {key: row[column] for key, row in of_delta.items()} == {key: row[column] for key, row in of_mlflow.items()}


def test_archived_traces_lose_only_nanoseconds_of_spans(of_delta: Rows, of_mlflow: Rows) -> None:
    def in_microseconds(row: dict[str, Any]) -> dict[str, Any]:
        trace = json.loads(row["trace_json"])
        for span in trace["data"]["spans"]:
            for name in ("start_time_unix_nano", "end_time_unix_nano"):
                span[name] = span[name] // 1000 * 1000
        return trace

    assert {key: json.loads(row["trace_json"]) for key, row in of_delta.items()} == {
        key: in_microseconds(row) for key, row in of_mlflow.items()
    }


def test_the_digest_is_the_digest_of_the_trace(of_delta: Rows, of_otel: Rows) -> None:
    for row in [*of_delta.values(), *of_otel.values()]:
        assert row["content_digest"] == hashlib.sha256(row["trace_json"].encode()).hexdigest()


# ---- OpenTelemetry tables ----

# These columns contain JSON, whose formatting is not preserved.
RESPELLED = {"spans", "request", "response", "trace_json", "content_digest", "part_digests"}
OTHERWISE = {"tags", "metadata", "assessments"}
HELD = sorted(set(COMPARED) - RESPELLED - OTHERWISE)


def text_or_json(text: str | None) -> Any:
    """The value of a JSON text, parsed again if it is a text, because version 1 does not distinguish the two."""
    value = None if text is None else json.loads(text)
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def held(row: dict[str, Any], value_of: Callable[[str | None], Any] = text_or_json) -> dict[str, Any]:
    """The parts that must be equal of columns in which a row of OpenTelemetry tables may differ from MLflow's."""
    return {
        "request": value_of(row["request"]),
        "response": value_of(row["response"]),
        "tags": {key: value for key, value in row["tags"].items() if key != "mlflow.artifactLocation"},
        "metadata": {
            key: value for key, value in row["metadata"].items() if key != "mlflow.migration.sourceExperimentId"
        },
        "assessments": sorted(row["assessments"], key=lambda assessment: assessment["assessment_id"]),
        "spans": [
            {
                **span,
                "inputs": value_of(span["inputs"]),
                "outputs": value_of(span["outputs"]),
                "tags": {key: value_of(value) for key, value in span["tags"].items()},
                "metadata": {key: value_of(value) for key, value in span["metadata"].items()},
            }
            for span in row["spans"]
        ],
    }


def spans_in_full(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans of `trace_json`, with nanoseconds, events and links, without their attributes."""
    return [{**span, "attributes": None} for span in json.loads(row["trace_json"])["data"]["spans"]]


@pytest.mark.parametrize("column", HELD)
def test_otel_tables_yield_the_same_rows_as_mlflow(of_otel: Rows, of_mlflow: Rows, column: str) -> None:
    assert {key: row[column] for key, row in of_otel.items()} == {key: row[column] for key, row in of_mlflow.items()}


def test_otel_tables_yield_the_same_rows_except_for_json_formatting(of_otel: Rows, of_mlflow: Rows) -> None:
    for key, row in of_mlflow.items():
        assert held(of_otel[key]) == held(row)
        assert spans_in_full(of_otel[key]) == spans_in_full(row)
