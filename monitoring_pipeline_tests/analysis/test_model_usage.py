"""The table `model_usage`: against pandas over MLflow's own spans of the recorded conversations, and by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from mlflow.entities import SpanStatusCode, Trace

from monitoring_pipeline.analysis.performance import model_usage
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.tables import AGENT_TRACES, MODEL_USAGE, TOKEN_COLUMNS
from monitoring_pipeline.windows import floor_hour, from_milliseconds
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW

START = datetime(2026, 1, 1, 5, tzinfo=UTC)


def test_it_counts_the_spans_of_the_recorded_conversations(
    recorded_traces: list[Trace], archived: Path, spark: SparkResource
) -> None:
    lake = LakeResource(location=str(archived), spark=spark)
    found = model_usage(lake.read(AGENT_TRACES, RECORDED_WINDOW)).toArrow().to_pandas().set_index(["hour", "model"])

    spans = pd.DataFrame(
        {
            "hour": floor_hour(from_milliseconds(trace.info.request_time)),
            "model": span.attributes["mlflow.llm.model"],
            **span.attributes["mlflow.chat.tokenUsage"],
            "cost_usd": sum(span.attributes["mlflow.llm.cost"][f"{kind}_cost"] for kind in ("input", "output")),
            "failed": span.status.status_code == SpanStatusCode.ERROR,
            "ms": ((span.end_time_ns or 0) // 1000 - span.start_time_ns // 1000) / 1000,
        }
        for trace in recorded_traces
        for span in trace.data.spans
        if "mlflow.chat.tokenUsage" in span.attributes
    )
    groups = spans.groupby(["hour", "model"])
    assert len(groups) > 40
    expected = groups[["input_tokens", "output_tokens", "total_tokens", "cost_usd"]].sum()
    expected = expected.assign(call_count=groups.size(), error_count=groups["failed"].sum(), unpriced_count=0)
    for rank in (50, 95, 99):
        expected[f"p{rank}_ms"] = groups["ms"].quantile(rank / 100)
    columns = [*expected.columns]
    pd.testing.assert_frame_equal(
        found[columns].sort_index(), expected.sort_index(), check_dtype=False, check_index_type=False, rtol=1e-9
    )


def call(model: str | None, total: int | None, **values: Any) -> dict[str, Any]:
    return {"model": model, "provider": "p", "total_tokens": total, "status": "OK", "duration_ms": 10.0, **values}


def usage(spark: SparkResource, *traces: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    made = [{"trace_id": f"tr-{n}", "trace_hour": START, "created_at": START, **row} for n, row in enumerate(traces)]
    frame = spark.session.createDataFrame(pa.Table.from_pylist(made, AGENT_TRACES.schema))
    rows = model_usage(frame).toArrow().to_pylist()
    return {(row["hour"], row["experiment_id"], row["model"]): row for row in rows}


def test_calls_are_summed_up_by_hour_experiment_and_model(spark: SparkResource) -> None:
    calls = [
        call("m", 10, input_tokens=7, cached_input_tokens=2, cost_usd=0.5, duration_ms=10.0),
        call("m", 20, input_tokens=9, reasoning_tokens=1, cost_usd=None, duration_ms=30.0),
        call("m", None, status="ERROR", duration_ms=None),
    ]
    found = usage(
        spark,
        {"experiment_id": "1", "model_calls": [*calls, call(None, 3)]},
        {"experiment_id": "1", "model_calls": [], "trace_hour": START + timedelta(hours=1)},
        {"experiment_id": "2", "model_calls": None},
        {"experiment_id": "2", "model_calls": [call("m", 5)]},
    )
    assert {key: row["call_count"] for key, row in found.items()} == {
        (START, "1", "m"): 3,
        (START, "1", None): 1,
        (START, "2", "m"): 1,
    }
    row = found[START, "1", "m"]
    assert [row[name] for name in TOKEN_COLUMNS] == [16, None, 30, 2, None, 1]
    assert (row["error_count"], row["error_rate"]) == (1, pytest.approx(1 / 3))
    assert (row["cost_usd"], row["unpriced_count"]) == (0.5, 1)
    assert (row["p50_ms"], row["p95_ms"]) == (20.0, pytest.approx(29.0))
    assert set(row) == set(MODEL_USAGE.columns.names)
