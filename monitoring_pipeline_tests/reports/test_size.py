"""A day of 200,000 traces: its report takes seconds, because the engine aggregates and returns only sums."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from monitoring_pipeline.analysis.performance import hourly_performance
from monitoring_pipeline.reports.files import write_report
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.reading import report_data
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    HOURLY_PERFORMANCE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.made_project import scorer

TRACES = 200_000
DAY = datetime(2026, 1, 14, tzinfo=UTC)
WINDOW = Window(DAY, DAY + timedelta(days=1))
SECONDS = 60  # a few seconds on an idle machine with two cores


def fill(lake: LakeResource, table: Table, columns: dict[str, object]) -> None:
    """Replace the day's rows of the table with these columns; others are null."""
    names = table.columns.names
    rows = {
        name: pa.array(columns[name], table.schema.field(name).type)
        if name in columns
        else pa.nulls(TRACES, table.schema.field(name).type)
        for name in names
    }
    lake.replace(table, WINDOW, pa.table(rows))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> LakeResource:
    """One trace in ten fails, each with a different number in its message."""
    lake = LakeResource(location=str(tmp_path_factory.mktemp("large") / "lake"), spark=spark)
    random = np.random.default_rng(1)
    hours = np.sort(random.integers(0, 24, TRACES))
    ids, times = [f"tr-{n:032x}" for n in range(TRACES)], [DAY + timedelta(hours=int(hour)) for hour in hours]
    failed = random.random(TRACES) < 0.1
    experiments = np.where(random.random(TRACES) < 0.7, "1", "2")
    place = {"trace_id": ids, "trace_hour": times, "experiment_id": experiments}
    tokens = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), np.full(TRACES, 10))
    fill(lake, AGENT_TRACES, {**place, "created_at": times, "experiment_name": experiments})
    performance = {
        **place,
        **tokens,
        "status": np.where(failed, "ERROR", "OK"),
        "span_count": np.full(TRACES, 4),
        "duration_ms": random.lognormal(7, 0.6, TRACES),
        "cost_usd": random.exponential(0.01, TRACES),
    }
    fill(lake, TRACE_PERFORMANCE, performance)
    lake.replace(HOURLY_PERFORMANCE, WINDOW, hourly_performance(lake.read(TRACE_PERFORMANCE, WINDOW)))
    cause = {"span_id": "a", "name": "lookup", "span_type": "TOOL"}
    spans = [[cause | {"status_message": f"Timeout: order {n}"}] if fails else None for n, fails in enumerate(failed)]
    errors = pa.table(
        {
            **{name: pa.array(values).filter(pa.array(failed)) for name, values in place.items()},
            "error_spans": pa.array(spans, TRACE_ERRORS.schema.field("error_spans").type).filter(pa.array(failed)),
        }
    )
    for name in TRACE_ERRORS.schema.names:
        if name not in errors.column_names and name != "date":
            errors = errors.append_column(name, pa.nulls(len(errors), TRACE_ERRORS.schema.field(name).type))
    lake.replace(TRACE_ERRORS, WINDOW, errors)
    [quality] = load_scorers([scorer("response_quality")])
    scores = {
        **place,
        "scorer": [quality.name] * TRACES,
        "scorer_digest": [quality.digest] * TRACES,
        "assessment_id": ids,
        "value": ["1"] * TRACES,
        "score": random.random(TRACES),
        "assessed_at": times,
    }
    fill(lake, ASSESSMENTS, scores)
    return lake


def test_a_report_of_a_large_day_takes_seconds(large: LakeResource, tmp_path: Path) -> None:
    started = time.monotonic()
    data = report_data(large, load_scorers([scorer("response_quality")]), Period.day(DAY.date()))
    write_report(Report(data), tmp_path)
    assert time.monotonic() - started < SECONDS
    assert data.totals.loc[data.totals["experiment_id"].isna(), "trace_count"].tolist() == [TRACES]
    [group] = data.errors.to_dict("records")
    assert group["signature"] == "Timeout: order <*>"
    assert group["trace_count"] == data.error_traces > TRACES / 20
    rows = {name: len(value) for name, value in vars(data).items() if isinstance(value, pd.DataFrame)}
    assert max(rows.values()) <= 48
