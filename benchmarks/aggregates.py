"""Aggregates of a week of traces with eight spans each, against DuckDB on the same Parquet files."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from benchmarks.lakes import START, fill_lake
from benchmarks.measuring import Result, at_most, no_more, side_by_side
from monitoring_pipeline.windows import HOUR, Window

TRACES, SMALL_TRACES = 200_000, 10_000
FIRST_HOUR = Window(START, START + HOUR)
Rows = dict[tuple[Any, ...], tuple[Any, ...]]

HOURLY_PERFORMANCE = """
SELECT trace_hour, experiment_id, coalesce(trace_name, '') AS name, count(*), count(*) FILTER (status = 'ERROR'),
    avg(duration_ms), quantile_cont(duration_ms, [0.5, 0.95, 0.99]), sum(span_count), sum(input_tokens),
    sum(output_tokens), sum(total_tokens), sum(cost_usd)
FROM read_parquet(getvariable('files'))
GROUP BY GROUPING SETS ((trace_hour, experiment_id, name), (trace_hour, experiment_id))
"""
# The fastest of the ways tried; with window functions instead of lists it takes a quarter more.
SPAN_PROFILE = """
WITH spans AS (
    SELECT trace_id, trace_hour, experiment_id, unnest(spans) AS span FROM read_parquet(getvariable('files'))
), slim AS (
    SELECT trace_id, trace_hour, experiment_id, span.span_id AS id, span.parent_id AS parent, span.span_type AS type,
        span.name AS name, span.status AS status, epoch_us(span.start_time) AS a, epoch_us(span.end_time) AS b
    FROM spans
), parents AS (
    SELECT trace_id, parent AS id, list_sort(list({'a': a, 'b': b})) AS children
    FROM slim WHERE parent IS NOT NULL GROUP BY ALL
), timed AS (
    SELECT slim.*, b - a AS us, b - a - coalesce(list_reduce(children, lambda s, c: {
        'a': s.a + greatest(0, least(c.b, slim.b) - greatest(c.a, s.b)), 'b': greatest(s.b, least(c.b, slim.b))
    }, {'a': 0::BIGINT, 'b': slim.a}).a, 0) AS self_us
    FROM slim LEFT JOIN parents USING (trace_id, id)
)
SELECT trace_hour, experiment_id, type, name, count(*), count(*) FILTER (status = 'ERROR'), sum(us) / 1000,
    avg(us) / 1000, list_transform(quantile_cont(us, [0.5, 0.95, 0.99]), lambda x: x / 1000), max(us) / 1000,
    sum(self_us) / 1000
FROM timed GROUP BY GROUPING SETS ((trace_hour, experiment_id, type, name), (trace_hour, experiment_id, type))
"""


def subject(folder: Path, small: bool) -> Iterator[Result]:
    """Both tables, each by CPU seconds; the span profile also by memory."""
    traces, rounds = (SMALL_TRACES, 1) if small else (TRACES, 3)
    make_lake(folder, traces)
    shown = f"{traces:,} traces"
    hours = side_by_side(our_hours, duckdb_hours, str(folder), rounds=rounds)
    yield no_more(f"hourly_performance of {shown}, against DuckDB", *hours, 1.5, "cpu_s", rounds)
    spans = side_by_side(our_spans, duckdb_spans, str(folder), rounds=rounds)
    yield no_more(f"span_profile of {shown} x 8 spans, against DuckDB", *spans, 1.5, "cpu_s", rounds)
    yield at_most(f"span_profile of {shown} x 8 spans, memory", spans[0], 1024, "peak_mb", rounds)


def make_lake(folder: Path, traces: int) -> None:
    """Fill `agent_traces` and `trace_performance`."""
    from monitoring_pipeline.derivations import PERFORMANCE_OF_TRACES

    lake = _lake(str(folder))
    for day in fill_lake(lake, traces).by_day():
        PERFORMANCE_OF_TRACES.derive(lake, day)


def our_hours(folder: str) -> Generator[None, None, Rows]:
    from monitoring_pipeline.analysis.performance import hourly_performance
    from monitoring_pipeline.tables import TRACE_PERFORMANCE

    lake = _lake(folder)
    hourly_performance(lake.read(TRACE_PERFORMANCE, FIRST_HOUR)).toArrow()
    yield
    rows = hourly_performance(lake.read(TRACE_PERFORMANCE)).drop("error_rate").toArrow()
    yield
    return _rows(rows.to_pylist(), keys=3)


def our_spans(folder: str) -> Generator[None, None, Rows]:
    from monitoring_pipeline.analysis.performance import span_profile
    from monitoring_pipeline.tables import AGENT_TRACES

    lake = _lake(folder)
    span_profile(lake.read(AGENT_TRACES, FIRST_HOUR)).toArrow()
    yield
    rows = span_profile(lake.read(AGENT_TRACES)).toArrow()
    yield
    return _rows(rows.to_pylist(), keys=4)


def duckdb_hours(folder: str) -> Generator[None, None, Rows]:
    return _by_duckdb(HOURLY_PERFORMANCE, f"{folder}/trace_performance", keys=3)


def duckdb_spans(folder: str) -> Generator[None, None, Rows]:
    return _by_duckdb(SPAN_PROFILE, f"{folder}/agent_traces", keys=4)


def _by_duckdb(sql: str, table: str, keys: int) -> Generator[None, None, Rows]:
    import duckdb

    database = duckdb.connect()
    database.execute("SET timezone = 'UTC'")
    database.execute("SET VARIABLE files = $1", [f"{table}/date={START:%Y-%m-%d}/*.parquet"])
    database.sql(sql).to_arrow_table()
    database.execute("SET VARIABLE files = $1", [f"{table}/*/*.parquet"])
    yield
    rows = database.sql(sql).to_arrow_table()
    yield
    return _rows(rows.to_pylist(), keys)


def _rows(rows: list[dict[str, Any]], keys: int) -> Rows:
    """The values by the first `keys` columns; times as UTC, lists opened, numbers as floats."""
    found: Rows = {}
    for row in rows:
        values = [part for value in row.values() for part in (value if isinstance(value, list) else [value])]
        hour, *others = values[:keys]
        found[hour.timestamp(), *others] = tuple(None if value is None else float(value) for value in values[keys:])
    return found


def _lake(folder: str) -> Any:
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.spark import SparkResource

    return LakeResource(location=folder, spark=SparkResource())
