"""Performance from archived rows: against MLflow's own metrics and numpy, by hand, and on random span trees."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities.trace_metrics import AggregationType, MetricAggregation, MetricViewType
from mlflow.tracing.client import TracingClient
from pyspark.sql import DataFrame

from monitoring_pipeline.analysis.performance import hourly_performance, span_profile, trace_errors, trace_performance
from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.sources.mlflow import read_traces
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    HOURLY_PERFORMANCE,
    SPAN_PROFILE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline.windows import Window, floor_hour
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW

START = datetime(2026, 1, 1, 5, tzinfo=UTC)
HOUR = Window(START, START + timedelta(hours=1))
DAY = Window(START, START + timedelta(days=1))
FIGURES = ["p50_duration_ms", "p95_duration_ms", "p99_duration_ms"]

# ---- the recorded conversations ----


@dataclass(frozen=True)
class Recorded:
    experiment_id: str
    traces: pd.DataFrame
    by_name: pd.DataFrame
    all_names: pd.DataFrame


@pytest.fixture(scope="module")
def recorded(recorded_store: str, tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> Recorded:
    lake = LakeResource(location=str(tmp_path_factory.mktemp("recorded")), spark=spark)
    experiment = MlflowClient(recorded_store).get_experiment_by_name("airline")
    assert experiment is not None
    batches = read_traces(TracingClient(recorded_store), [experiment.experiment_id], RECORDED_WINDOW)
    archive(lake, RECORDED_WINDOW, batches, {experiment.experiment_id: "airline"})
    performance = trace_performance(lake.read(AGENT_TRACES, RECORDED_WINDOW))
    hourly = hourly_performance(performance).toPandas().assign(hour=lambda rows: rows["hour"].dt.tz_localize(UTC))
    traces = performance.toPandas().assign(hour=lambda rows: rows["trace_hour"].dt.tz_localize(UTC))
    by_hour = hourly.set_index("hour").sort_index()
    is_total = by_hour["trace_name"].isna()
    return Recorded(experiment.experiment_id, traces, by_hour[~is_total], by_hour[is_total])


def mlflow_metric(
    uri: str, experiment_id: str, metric: str, *aggregations: MetricAggregation, **options: Any
) -> dict[datetime, dict[str, float]]:
    """The values of each hour; the percentile keys P95 (database) and P95.0 (server) both as P95."""
    points = TracingClient(uri).store.query_trace_metrics(
        [experiment_id],
        MetricViewType.TRACES,
        metric,
        list(aggregations),
        time_interval_seconds=3600,
        start_time_ms=round(RECORDED_WINDOW.start.timestamp() * 1000),
        end_time_ms=round(RECORDED_WINDOW.end.timestamp() * 1000),
        **options,
    )
    return {
        datetime.fromisoformat(point.dimensions["time_bucket"]): {
            key.removesuffix(".0"): value for key, value in point.values.items()
        }
        for point in points
    }


PERCENTILES = [MetricAggregation(AggregationType.PERCENTILE, percentile) for percentile in (50, 95, 99)]
SOURCES = pytest.mark.parametrize("source", ["recorded_store", "recorded_server"])


@SOURCES
def test_latencies_of_every_hour_equal_mlflows(recorded: Recorded, request: pytest.FixtureRequest, source: str) -> None:
    uri = request.getfixturevalue(source)
    average = MetricAggregation(AggregationType.AVG)
    expected = mlflow_metric(uri, recorded.experiment_id, "latency", *PERCENTILES, average)
    found = {
        row.Index.to_pydatetime(): {
            "P50": row.p50_duration_ms,
            "P95": row.p95_duration_ms,
            "P99": row.p99_duration_ms,
            "AVG": row.avg_duration_ms,
        }
        for row in recorded.all_names.itertuples()
    }
    assert len(found) == 48
    assert found.keys() == expected.keys()
    for hour, values in found.items():
        assert values == pytest.approx(expected[hour], abs=1e-6)


@SOURCES
@pytest.mark.parametrize(
    ("column", "filters"), [("trace_count", None), ("error_count", ["trace.status = 'ERROR'"])], ids=["all", "errors"]
)
def test_counts_of_every_hour_equal_mlflows(
    recorded: Recorded, request: pytest.FixtureRequest, source: str, column: str, filters: list[str] | None
) -> None:
    uri, count = request.getfixturevalue(source), MetricAggregation(AggregationType.COUNT)
    expected = mlflow_metric(uri, recorded.experiment_id, "trace_count", count, filters=filters)
    found = recorded.all_names[column]
    assert {hour.to_pydatetime(): number for hour, number in found.items() if number} == {
        hour: values["COUNT"] for hour, values in expected.items()
    }


@pytest.mark.parametrize("metric", ["input_tokens", "output_tokens", "total_tokens"])
def test_tokens_of_every_hour_equal_mlflows(recorded: Recorded, recorded_store: str, metric: str) -> None:
    expected = mlflow_metric(recorded_store, recorded.experiment_id, metric, MetricAggregation(AggregationType.SUM))
    assert {hour.to_pydatetime(): number for hour, number in recorded.all_names[metric].items()} == {
        hour: values["SUM"] for hour, values in expected.items()
    }


def test_percentiles_equal_numpys(recorded: Recorded) -> None:
    for hour, rows in recorded.traces.groupby("hour"):
        expected = np.percentile(rows["duration_ms"], [50, 95, 99])
        assert recorded.all_names.loc[hour, FIGURES].to_list() == pytest.approx(expected, abs=1e-6)


def test_with_a_single_name_figures_by_name_equal_the_figures_of_all_names(recorded: Recorded) -> None:
    assert set(recorded.by_name["trace_name"]) == {"airline_agent"}
    columns = recorded.by_name.columns.drop("trace_name")
    pd.testing.assert_frame_equal(recorded.by_name[columns], recorded.all_names[columns])


def test_errors_are_counted_by_trace(recorded: Recorded) -> None:
    assert recorded.all_names["error_count"].sum() == 16
    assert (recorded.traces["error_span_count"] > 0).sum() > 16  # an agent can recover from a tool's error


# ---- rows made by hand ----


def at(milliseconds: float) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


def span(
    name: str | None = "s",
    start_ms: float | None = 0,
    end_ms: float | None = 10,
    span_id: str | None = None,
    parent: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A span that starts and ends so many ms after START; its id is its name unless given."""
    return {
        "span_id": span_id or name,
        "parent_id": parent,
        "name": name,
        "span_type": "TOOL",
        "status": "OK",
        "start_time": None if start_ms is None else at(start_ms),
        "end_time": None if end_ms is None else at(end_ms),
        **changes,
    }


def trace(
    trace_id: str, *spans: dict[str, Any], status: str = "OK", started: datetime = START, **changes: Any
) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "trace_hour": floor_hour(started),
        "date": started.date(),
        "created_at": started,
        "experiment_id": "1",
        "trace_name": "agent",
        "trace_info": {"request_id": trace_id, "timestamp": started, "status": status},
        "duration_ms": 10.0,
        "spans": list(spans),
        **changes,
    }


@pytest.fixture(scope="module")
def frame(spark: SparkResource) -> Callable[..., DataFrame]:
    """Makes traces a DataFrame of rows of `agent_traces`."""
    return lambda *traces: spark.session.createDataFrame(pa.Table.from_pylist(list(traces), AGENT_TRACES.schema))


def records(rows: DataFrame, *keys: str) -> dict[Any, dict[str, Any]]:
    """The rows as dictionaries by the value (or values) of `keys`; values must not be NaN."""
    found = rows.toArrow().to_pylist()
    assert not [value for row in found for value in row.values() if isinstance(value, float) and math.isnan(value)]
    return {row[keys[0]] if len(keys) == 1 else tuple(row[key] for key in keys): row for row in found}


Frame = Callable[..., DataFrame]


def test_a_row_of_trace_performance(frame: Frame) -> None:
    spans = [span("root", 0, 100), span("a", 10, 30.5, "a", "root", status="ERROR"), span("b", 50, None, "b", "root")]
    row = trace("tr-1", *spans, status="ERROR", duration_ms=100.0, input_tokens=3, output_tokens=4, cost_usd=0.5)
    assert records(trace_performance(frame(row)), "trace_id")["tr-1"] == {
        "trace_id": "tr-1",
        "trace_hour": START,
        "experiment_id": "1",
        "trace_name": "agent",
        "status": "ERROR",
        "span_count": 3,
        "error_span_count": 1,
        "duration_ms": 100.0,
        "total_span_duration_ms": 120.5,
        "avg_span_duration_ms": 60.25,
        "input_tokens": 3,
        "output_tokens": 4,
        "total_tokens": None,
        "cost_usd": 0.5,
    }


@pytest.mark.parametrize(
    ("spans", "total", "average"),
    [
        ([], 0, None),
        ([span(end_ms=None)], 0, None),
        ([span(start_ms=None)], 0, None),
        ([span(end_ms=0)], 0, 0),
        ([span(start_ms=10, end_ms=4), span("t")], 10, 5),  # the clock was set back: the duration is 0, not negative
        ([span(end_ms=0.001)], 0.001, 0.001),
    ],
)
def test_durations_of_odd_spans(frame: Frame, spans: list[dict[str, Any]], total: float, average: float | None) -> None:
    row = records(trace_performance(frame(trace("tr-1", *spans))), "trace_id")["tr-1"]
    assert (row["total_span_duration_ms"], row["avg_span_duration_ms"]) == (total, average)


def test_a_trace_is_an_error_by_its_status_or_a_span(frame: Frame) -> None:
    traces = [
        trace("sound", span()),
        trace("failed", span(), status="ERROR"),
        trace("recovered", span(), span("t", status="ERROR")),
        trace("empty"),
        trace("empty and failed", status="ERROR"),
    ]
    errors = records(trace_errors(frame(*traces)), "trace_id")
    assert {key: len(row["error_spans"]) for key, row in errors.items()} == {
        "failed": 0,
        "recovered": 1,
        "empty and failed": 0,
    }


def test_a_row_of_trace_errors(frame: Frame) -> None:
    failed = span("t", status="ERROR", status_message="no such flight", span_type=None)
    rows = frame(trace("tr-1", span(), failed, request='"<b>hi</b>"'))
    assert records(trace_errors(rows), "trace_id")["tr-1"] == {
        "trace_id": "tr-1",
        "trace_hour": START,
        "experiment_id": "1",
        "trace_name": "agent",
        "request_id": "tr-1",
        "timestamp": START,
        "status": "OK",
        "request": '"<b>hi</b>"',
        "error_spans": [
            {"span_id": "t", "name": "t", "span_type": None, "status_message": "no such flight"},
        ],
    }


def test_errors_are_found_in_a_delta_table(lake: LakeResource) -> None:
    rows = pa.Table.from_pylist([trace("tr-1", span(status="ERROR")), trace("tr-2")], AGENT_TRACES.schema)
    lake.upsert(AGENT_TRACES, rows)
    assert list(records(trace_errors(lake.read(AGENT_TRACES, HOUR)), "trace_id")) == ["tr-1"]


def hourly(frame: Frame, *traces: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return records(hourly_performance(trace_performance(frame(*traces))), "hour", "experiment_id", "trace_name")


def test_a_row_of_hourly_performance(frame: Frame) -> None:
    traces = [
        trace("a", span(), span("t"), duration_ms=10.0, input_tokens=1, total_tokens=5, cost_usd=0.25),
        trace("b", span(status="ERROR"), span("t", status="ERROR"), status="ERROR", duration_ms=30.0, input_tokens=2),
        trace("c", duration_ms=9e6, status="IN_PROGRESS"),  # a claim
        trace("d", span(status="ERROR"), duration_ms=20.0, cost_usd=0.5),
    ]
    assert hourly(frame, *traces)[START, "1", None] == {
        "hour": START,
        "experiment_id": "1",
        "trace_name": None,
        "trace_count": 4,
        "error_count": 1,
        "error_rate": 0.25,
        "avg_duration_ms": 20.0,
        "p50_duration_ms": 20.0,
        "p95_duration_ms": pytest.approx(29.0),
        "p99_duration_ms": pytest.approx(29.8),
        "span_count": 5,
        "input_tokens": 3,
        "output_tokens": None,
        "total_tokens": 5,
        "cost_usd": 0.75,
    }


def test_hours_experiments_and_names_have_separate_rows(frame: Frame) -> None:
    later = START + timedelta(hours=1)
    traces = [
        trace("a"),
        trace("b", trace_name="other"),
        trace("c", trace_name=None),
        trace("d", experiment_id="2"),
        trace("e", started=later),
    ]
    assert {key: row["trace_count"] for key, row in hourly(frame, *traces).items()} == {
        (START, "1", "agent"): 1,
        (START, "1", "other"): 1,
        (START, "1", ""): 1,  # without a name
        (START, "1", None): 3,  # all names
        (START, "2", "agent"): 1,
        (START, "2", None): 1,
        (later, "1", "agent"): 1,
        (later, "1", None): 1,
    }


def test_the_percentiles_of_a_single_trace_equal_its_duration(frame: Frame) -> None:
    row = hourly(frame, trace("a", duration_ms=7.5))[START, "1", None]
    assert [row[column] for column in [*FIGURES, "avg_duration_ms"]] == [7.5] * 4


def test_without_any_duration_there_are_no_latencies(frame: Frame) -> None:
    row = hourly(frame, trace("a", status="IN_PROGRESS", duration_ms=9e6))[START, "1", None]
    assert [row[column] for column in [*FIGURES, "avg_duration_ms"]] == [None] * 4
    assert (row["trace_count"], row["error_rate"]) == (1, 0.0)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(durations=st.lists(st.floats(0, 1e9), min_size=1, max_size=60), unfinished=st.integers(0, 3))
def test_percentiles_of_any_durations_equal_numpys(frame: Frame, durations: list[float], unfinished: int) -> None:
    traces = [trace(f"tr-{index}", duration_ms=ms) for index, ms in enumerate([*durations, *[None] * unfinished])]
    row = hourly(frame, *traces)[START, "1", None]
    assert row["trace_count"] == len(traces)
    expected = np.percentile(durations, [50, 95, 99]).tolist()
    assert [row[column] for column in FIGURES] == pytest.approx(expected, rel=1e-9, abs=1e-6)


# ---- where the time goes ----


def profile(frame: Frame, *traces: dict[str, Any]) -> dict[tuple[str, str | None], dict[str, Any]]:
    return records(span_profile(frame(*traces)), "span_type", "span_name")


def self_ms(frame: Frame, name: str, *spans: dict[str, Any]) -> float | None:
    return profile(frame, trace("tr-1", *spans))["TOOL", name]["self_time_ms"]


def test_a_row_of_the_span_profile(frame: Frame) -> None:
    spans = [
        span("root", 0, 100, span_type="AGENT"),
        span("call", 10, 30, "c1", "root"),
        span("call", 40, 80, "c2", "root", status="ERROR"),
        span("call", 85, None, "c3", "root"),
    ]
    assert profile(frame, trace("tr-1", *spans))["TOOL", "call"] == {
        "hour": START,
        "experiment_id": "1",
        "span_type": "TOOL",
        "span_name": "call",
        "span_count": 3,
        "error_count": 1,
        "total_ms": 60.0,
        "avg_ms": 30.0,
        "p50_ms": 30.0,
        "p95_ms": pytest.approx(39.0),
        "p99_ms": pytest.approx(39.8),
        "max_ms": 40.0,
        "self_time_ms": 60.0,
    }


def test_types_are_summed_over_their_names(frame: Frame) -> None:
    spans = [span("a", 0, 10), span("b", 0, 20), span("c", 0, 40, span_type="LLM")]
    found = profile(frame, trace("tr-1", *spans), trace("tr-2", span("a", 0, 5)))
    assert {key: (row["span_count"], row["total_ms"]) for key, row in found.items()} == {
        ("TOOL", "a"): (2, 15.0),
        ("TOOL", "b"): (1, 20.0),
        ("LLM", "c"): (1, 40.0),
        ("TOOL", None): (3, 35.0),
        ("LLM", None): (1, 40.0),
    }


def test_a_missing_type_is_unknown_and_a_missing_name_empty(frame: Frame) -> None:
    assert set(profile(frame, trace("tr-1", span(None, span_id="x", span_type=None)))) == {
        ("UNKNOWN", ""),
        ("UNKNOWN", None),
    }


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ([], 100),
        ([(10, 20), (30, 50)], 70),
        ([(10, 50), (20, 40)], 60),
        ([(10, 50), (40, 60)], 50),
        ([(10, 50), (10, 50)], 60),
        ([(0, 100)], 0),
        ([(-50, 20)], 80),
        ([(90, 300)], 90),
        ([(-50, 300)], 0),
        ([(-50, -20), (200, 300)], 100),
        ([(50, None)], 100),
        ([(None, 50)], 100),
        ([(60, 40)], 100),
        ([(60, 40), (45, 55)], 90),
        ([(50, 50)], 100),
    ],
    ids=str,
)
def test_self_time(frame: Frame, children: list[tuple[float | None, float | None]], expected: float) -> None:
    spans = [span(f"c{index}", *times, parent="root") for index, times in enumerate(children)]
    assert self_ms(frame, "root", span("root", 0, 100), *spans) == expected


def test_only_direct_children_are_subtracted(frame: Frame) -> None:
    spans = [span("root", 0, 100), span("a", 10, 20, parent="root"), span("b", 0, 100, parent="a")]
    assert self_ms(frame, "root", *spans) == 90


def test_spans_with_the_id_of_another_trace_are_not_its_children(frame: Frame) -> None:
    traces = [trace("tr-1", span("root", 0, 100)), trace("tr-2", span("child", 0, 60, parent="root"))]
    assert profile(frame, *traces)["TOOL", "root"]["self_time_ms"] == 100


def test_a_span_that_ends_before_it_starts_takes_no_time(frame: Frame) -> None:
    spans = [span("root", 10, 5), span("child", 0, 20, parent="root")]
    row = profile(frame, trace("tr-1", *spans))["TOOL", "root"]
    assert [row[column] for column in ("total_ms", "max_ms", "p50_ms", "self_time_ms")] == [0, 0, 0, 0]


def test_a_span_without_an_end_has_no_times(frame: Frame) -> None:
    row = profile(frame, trace("tr-1", span("root", 0, None), span("child", 0, 5, parent="root")))["TOOL", "root"]
    times = ("total_ms", "avg_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms", "self_time_ms")
    assert (row["span_count"], [row[column] for column in times]) == (1, [None] * 7)


def test_cyclic_parents_do_not_loop(frame: Frame) -> None:
    spans = [span("a", 0, 10, parent="b"), span("b", 0, 20, parent="a"), span("c", 0, 5, parent="c")]
    found = profile(frame, trace("tr-1", *spans))
    assert [found["TOOL", name]["self_time_ms"] for name in ("a", "b", "c")] == [0, 10, 0]


def test_duplicated_span_ids_are_each_counted_once(frame: Frame) -> None:
    spans = [span("root", 0, 100, "x"), span("root", 0, 50, "x"), span("child", 10, 30, "y", "x")]
    found = profile(frame, trace("tr-1", *spans))
    assert (found["TOOL", "root"]["span_count"], found["TOOL", "root"]["self_time_ms"]) == (2, 80 + 30)
    assert found["TOOL", "child"]["total_ms"] == 20


Interval = tuple[int, int | None]
MICROSECOND = 1e-3
TREES = st.lists(
    st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 60), st.one_of(st.none(), st.integers(0, 60))), max_size=8),
    min_size=1,
    max_size=8,
)


def brute_force_self_us(own: Interval, children: list[Interval]) -> int | None:
    """Counts each microsecond of the span in which none of its children runs."""
    start, end = own
    if end is None:
        return None
    covered = {us for first, last in children if last is not None for us in range(first, last)}
    return len(set(range(start, end)) - covered)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees=TREES)
def test_self_time_equals_the_one_found_by_brute_force(
    frame: Frame, trees: list[list[tuple[int, int, int | None]]]
) -> None:
    traces, expected = [], {}
    for tree, nodes in enumerate(trees):
        children: dict[int, list[Interval]] = defaultdict(list)
        for parent, start, end in nodes:
            children[parent].append((start, end))
        spans = [
            span(
                f"{tree}.{index}",
                start * MICROSECOND,
                None if end is None else end * MICROSECOND,
                span_id=str(index),
                parent=None if parent < 0 else str(parent),
            )
            for index, (parent, start, end) in enumerate(nodes)
        ]
        traces.append(trace(f"tr-{tree}", *spans))
        for index, (_, start, end) in enumerate(nodes):
            self_us = brute_force_self_us((start, end), children[index])
            expected[f"{tree}.{index}"] = None if self_us is None else self_us / 1000
    found = {name: row["self_time_ms"] for (_, name), row in profile(frame, *traces).items() if name is not None}
    assert found == pytest.approx(expected, abs=1e-9)


# ---- through the lake ----

TRANSFORMS: list[tuple[Table, Callable[[DataFrame], DataFrame]]] = [
    (TRACE_PERFORMANCE, trace_performance),
    (TRACE_ERRORS, trace_errors),
    (HOURLY_PERFORMANCE, lambda traces: hourly_performance(trace_performance(traces))),
    (SPAN_PROFILE, span_profile),
]
EACH_TABLE = pytest.mark.parametrize(("table", "transform"), TRANSFORMS, ids=lambda value: getattr(value, "name", ""))


@EACH_TABLE
def test_an_empty_window_yields_an_empty_table(
    lake: LakeResource, table: Table, transform: Callable[[DataFrame], DataFrame]
) -> None:
    assert lake.replace(table, HOUR, transform(lake.read(AGENT_TRACES, HOUR))) == 0
    assert lake.read(table, HOUR).columns == table.schema.names


@EACH_TABLE
@pytest.mark.parametrize(
    "spans", [[], [span(end_ms=None, status="ERROR")], [span(status="ERROR"), span("t", parent="s")]], ids=len
)
def test_results_fit_their_table(
    lake: LakeResource,
    table: Table,
    transform: Callable[[DataFrame], DataFrame],
    spans: list[dict[str, Any]],
) -> None:
    bare = trace("tr-1", *spans, status="ERROR", duration_ms=None, trace_name=None)
    lake.upsert(AGENT_TRACES, pa.Table.from_pylist([bare], AGENT_TRACES.schema))
    written = lake.replace(table, HOUR, transform(lake.read(AGENT_TRACES, HOUR)))
    assert written == lake.read(table, HOUR).count()
    assert written > 0 or table == SPAN_PROFILE


def test_hourly_performance_is_the_same_from_the_stored_trace_performance(lake: LakeResource) -> None:
    traces = [trace("a"), trace("b", trace_name=None, duration_ms=20.0), trace("c", started=START + timedelta(hours=2))]
    lake.upsert(AGENT_TRACES, pa.Table.from_pylist(traces, AGENT_TRACES.schema))
    performance = trace_performance(lake.read(AGENT_TRACES, DAY))
    lake.replace(TRACE_PERFORMANCE, DAY, performance)
    keys = ("hour", "experiment_id", "trace_name")
    stored = records(hourly_performance(lake.read(TRACE_PERFORMANCE, DAY)), *keys)
    assert stored == records(hourly_performance(performance), *keys)
    assert len(stored) == 5
