"""Traces that a caller passes, as rows of the archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from mlflow.entities import Trace
from mlflow.tracing.utils.search import traces_to_df

from monitoring_pipeline.archive.given import archive_rows, mlflow_traces
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline_tests.scoring.made import made_trace

OF_ARCHIVING = ["created_at", "experiment_name"]


def rows_of(frame: Any) -> list[dict[str, Any]]:
    found: pa.Table = frame.drop(*OF_ARCHIVING).toArrow()
    assert found.column_names == [name for name in AGENT_TRACES.schema.names if name not in OF_ARCHIVING]
    return sorted(found.to_pylist(), key=lambda row: row["trace_id"])


@pytest.mark.parametrize("form", [list, iter, traces_to_df], ids=["list", "iterator", "table"])
def test_rows_equal_those_of_the_archive(
    form: Any, recorded_traces: list[Trace], archived: Path, spark: SparkResource
) -> None:
    some = recorded_traces[::7]
    ids = {trace.info.trace_id for trace in some}
    expected = rows_of(LakeResource(location=str(archived), spark=spark).read(AGENT_TRACES))
    found = rows_of(archive_rows(spark.session, form(some)))
    if form is traces_to_df:  # MLflow loses an assessment's `valid` when it reads its JSON
        for row in [*found, *expected]:
            del row["trace_json"], row["content_digest"]
    assert found == [row for row in expected if row["trace_id"] in ids]
    assert len(found) == len(some)


def test_rows_of_the_archive_are_returned_unchanged(archived: Path, spark: SparkResource) -> None:
    rows = LakeResource(location=str(archived), spark=spark).read(AGENT_TRACES)
    assert archive_rows(spark.session, rows) is rows
    with pytest.raises(MonitoringError, match=r"^the rows of traces lack the columns spans, date of agent_traces$"):
        archive_rows(spark.session, rows.drop("spans", "date"))


def test_a_repeated_trace_counts_once_and_an_empty_list_has_no_rows(spark: SparkResource) -> None:
    assert archive_rows(spark.session, [made_trace(1), made_trace(2), made_trace(1)]).count() == 2
    assert archive_rows(spark.session, []).count() == 0
    assert archive_rows(spark.session, traces_to_df([])).count() == 0


def test_a_malformed_trace_is_left_out_with_a_warning(spark: SparkResource) -> None:
    surrogate = made_trace(2, answer="\ud800")
    surrogate.info.request_preview = "\ud800"
    with pytest.warns(UserWarning, match=rf"^1 malformed traces are left out, such as {surrogate.info.trace_id}: "):
        rows = archive_rows(spark.session, [made_trace(1), surrogate, made_trace(3)])
    assert [row["trace_id"] for row in rows_of(rows)] == [made_trace(n).info.trace_id for n in (1, 3)]


def test_traces_as_json_are_accepted() -> None:
    trace = made_trace(1)
    assert [found.to_dict() for found in mlflow_traces(traces_to_df([trace]))] == [trace.to_dict()]
    assert mlflow_traces([trace]) == [trace]


@pytest.mark.parametrize(
    ("traces", "line"),
    [
        (
            pd.DataFrame({"trace_id": ["tr-1"], "state": ["OK"]}),
            r"^the table of traces has no column 'trace', only tra",
        ),
        (pd.DataFrame({"trace": ["tr-1"]}), r"^'tr-1' is not a trace \(.+\); pass the result of mlflow.search_traces$"),
        (["tr-1"], r"^'tr-1' is not a trace \(.+\); pass the result of mlflow.search_traces$"),
        ([None], r"^'None' is not a trace \(.+\); pass"),
        ([json.dumps({"data": {}})], r"is not a trace \(.+\); pass"),
    ],
)
def test_anything_but_a_trace_is_refused_in_one_line(traces: Any, line: str) -> None:
    with pytest.raises(MonitoringError, match=line) as raised:
        mlflow_traces(traces)
    assert "\n" not in str(raised.value)
