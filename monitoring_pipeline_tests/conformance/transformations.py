"""Every transformation of the archive and of the tables computed from it, as the rows that each returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from monitoring_pipeline.analysis import performance
from monitoring_pipeline.analysis.agreement import agreement
from monitoring_pipeline.analysis.breakdown import break_down
from monitoring_pipeline.analysis.errors import error_groups
from monitoring_pipeline.analysis.overview import overview
from monitoring_pipeline.analysis.profiling import profile
from monitoring_pipeline.analysis.quality import Slot, quality
from monitoring_pipeline.analysis.releases import compare_releases
from monitoring_pipeline.analysis.signatures import signature_column, telling_line_column
from monitoring_pipeline.archive.frames import redacted_rows
from monitoring_pipeline.datasets.building import dataset_of_lake
from monitoring_pipeline.datasets.query import Query, query_of
from monitoring_pipeline.datasets.records import canonical
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.reading import report_data
from monitoring_pipeline.reports.standouts import Incident
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.coverage import ledger_problems, trace_states, waiting_hours
from monitoring_pipeline.scoring.forecast import forecast
from monitoring_pipeline.scoring.on_demand import archived_traces
from monitoring_pipeline.scoring.pending import pending_rows
from monitoring_pipeline.scoring.registry import ConfiguredScorer, reading_of
from monitoring_pipeline.scoring.sessions import session_heads, whole_sessions
from monitoring_pipeline.settings import RedactSettings
from monitoring_pipeline.sources.tables import ARCHIVED, QUARANTINE
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, SCORER_COVERAGE, TABLES, TRACE_PERFORMANCE
from monitoring_pipeline.traces.filters import matches
from monitoring_pipeline.traces.redaction import Redactor
from monitoring_pipeline.traces.searching import find_traces
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.analysis.test_signatures import SIGNATURES
from monitoring_pipeline_tests.traces.test_filters import VALID

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FILTERS_AT_A_TIME = 25
LEDGERS_OF = ("tool_errors", "length")  # a scorer with a rate and a filter, and one of whole sessions
SQL = Path(__file__).parents[2] / "docs" / "sql"
FILTER = "attributes.status = 'ERROR' AND attributes.execution_time_ms > 1000"
DATASETS: list[dict[str, Any]] = [
    {"kind": "traces", "max_records": 100, "filter": FILTER},
    {"kind": "expectations"},
    {"kind": "tagged", "tag": "environment"},
    {"kind": "failures", "scorer": "even"},
    {"kind": "regression", "scorer": "task_success"},
    {"kind": "diverse", "sample_size": 100},
]


def all_transformations(
    lake: LakeResource, scorers: list[ConfiguredScorer], window: Window
) -> Iterator[tuple[str, Callable[[], pa.Table]]]:
    """The transformations by name; when called, each computes its rows from the archive of `window`."""
    traces = lake.read(AGENT_TRACES, window)
    yield "columns of all tables", lambda: columns(lake)
    yield "trace_performance", lambda: performance.trace_performance(traces).toArrow()
    yield "trace_errors", lambda: performance.trace_errors(traces).toArrow()
    yield "hourly_performance", lambda: performance.hourly_performance(lake.read(TRACE_PERFORMANCE, window)).toArrow()
    yield "span_profile", lambda: performance.span_profile(traces).toArrow()
    yield "model_usage", lambda: performance.model_usage(traces).toArrow()
    yield "error groups", lambda: error_groups(performance.trace_errors(traces)).toArrow()
    yield "error signatures", lambda: signatures(traces.sparkSession)
    for by in ("trace_name", "status", "tags.environment", "metadata.`mlflow.trace.session`"):
        yield f"by {by}", lambda by=by: break_down(traces, by).toArrow()
    yield "overview", lambda: one_row(in_order(overview(traces)))
    yield "releases", lambda: one_row({"data": lines_of(vars(compare_releases(traces, "status", "OK", "ERROR")))})
    yield "profile of a trace", lambda: one_row(profile(traces.orderBy("trace_id").limit(1)))
    for order in (["execution_time_ms DESC"], ["tags.task_id", "status DESC"]):
        yield f"search by {order}", lambda order=order: numbered(find_traces(lake, window, "status != 'x'", order, 50))
    yield "agreement", lambda: of_pandas(agreement(traces, lake.read(ASSESSMENTS, window), scorers))
    slots: tuple[Slot, ...] = ("all", "hour")
    for slot in slots:
        yield (
            f"quality, {slot}",
            lambda slot=slot: of_pandas(
                quality(lake.read(ASSESSMENTS, window), lake.read(SCORER_COVERAGE, window), reading_of(scorers), slot)
            ),
        )
    version = lake.version(AGENT_TRACES)
    for scorer in (scorer for scorer in scorers if scorer.name in LEDGERS_OF):
        yield f"states, {scorer.name}", lambda s=scorer: trace_states(lake, s, window, version).drop("quiet").toArrow()
        yield f"forecast, {scorer.name}", lambda s=scorer: one_row(asdict(forecast(lake, s, window, sample_rate=1.0)))
        yield f"pending, {scorer.name}", lambda s=scorer: pending(lake, s, window, version)
        yield (
            f"waiting hours, {scorer.name}",
            lambda s=scorer: pa.table(
                {"hour": waiting_hours(lake, s, window)}, schema=pa.schema([("hour", pa.timestamp("us", "UTC"))])
            ),
        )
    of_sessions = replace(scorers[0], session_idle=timedelta(0))
    yield "sessions", lambda: session_heads(lake, of_sessions, window, version).toArrow()
    yield (
        "whole sessions",
        lambda: (
            whole_sessions(lake, session_heads(lake, of_sessions, window, version), window, version, ["request"])
            .drop("traces")
            .toArrow()
        ),
    )
    yield (
        "ledger problems",
        lambda: pa.table(
            {"problem": ledger_problems(lake, scorers, window)}, schema=pa.schema([("problem", pa.string())])
        ),
    )
    yield (
        "traces on demand",
        lambda: pa.table({"trace_id": [t.info.trace_id for t in archived_traces(lake, window, FILTER, None)]}),
    )
    for choice in DATASETS:
        query = query_of(window, scorers, **choice)
        yield f"dataset, {choice['kind']}", lambda query=query: records(lake, query)
    yield "redaction", lambda: redacted(traces)
    for first in range(0, len(VALID), FILTERS_AT_A_TIME):
        some = VALID[first : first + FILTERS_AT_A_TIME]
        yield (
            f"filters {first} to {first + len(some) - 1}",
            lambda some=some, first=first: traces.select(
                "trace_id", *(matches(filter).alias(f"filter {first + i}") for i, filter in enumerate(some))
            ).toArrow(),
        )
    for table in TABLES:
        lake.read(table).createOrReplaceTempView(table.name)
    for file in sorted(SQL.glob("*.sql")):
        yield f"sql, {file.stem}", lambda file=file: by_sql(lake, file)
    *_, last = window.days()  # it has a previous day
    yield f"report of {last}", lambda: pa.table({"data": [repr_of_report(lake, scorers, Period.day(last))]})


def columns(lake: LakeResource) -> pa.Table:
    """The names and types of each table's columns."""
    # Only Spark tracks whether nested fields may be null, so this is not compared.
    types = {
        table.name: [(field.name, field.dataType.simpleString()) for field in lake.read(table).schema]
        for table in TABLES
    }
    return pa.table({"table": [*types], "columns": [str(columns) for columns in types.values()]})


def records(lake: LakeResource, query: Query) -> pa.Table:
    """The records of a dataset in their order."""
    made = [canonical(record) for record in dataset_of_lake(lake, query)]
    return pa.table({"place": range(len(made)), "record": pa.array(made, pa.string())})


def signatures(session: SparkSession) -> pa.Table:
    from pyspark.sql import functions as F

    line = telling_line_column(F.col("message"))
    messages = session.createDataFrame([(message,) for message in SIGNATURES], "message string")
    return messages.select("message", line.alias("line"), signature_column(line).alias("signature")).toArrow()


def numbered(found: DataFrame) -> pa.Table:
    """The ids of the found traces with their position."""
    ids = found.select("trace_id").toArrow()["trace_id"]
    return pa.table({"place": range(len(ids)), "trace_id": ids})


def redacted(traces: DataFrame) -> pa.Table:
    """The archived traces, redacted again on the engine's workers."""
    from pyspark.sql import functions as F

    nothing_wrong = (F.lit(None).cast("string").alias(column.name) for column in QUARANTINE)
    detecting = Redactor(RedactSettings(detectors=["email", "phone", "card", "ip"]))
    rows = redacted_rows(traces.select(*ARCHIVED.names, *nothing_wrong), detecting)
    return rows.select("trace_id", "request", "response", "redactions", "reason", F.length("trace_json")).toArrow()


def pending(lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int) -> pa.Table:
    """The rows to score under a new digest, as if nothing had been scored; traces are replaced by their length."""
    from pyspark.sql import functions as F

    parts = pending_rows(lake, replace(scorer, digest="another"), window, version, window.by_day())
    length = F.length(F.array_join("traces", ""))
    return pa.concat_tables(rows.drop("active_until_ms").withColumn("traces", length).toArrow() for rows in parts)


def by_sql(lake: LakeResource, file: Path) -> pa.Table:
    """The rows of the query in the file, without write times and percentiles, which Sail computes to six digits."""
    rows = lake.spark.session.sql(file.read_text(encoding="utf-8"))
    left_out = ("last_written", "p50_", "p95_", "p99_")
    return rows.drop(*(name for name in rows.columns if name.startswith(left_out))).toArrow()


def repr_of_report(lake: LakeResource, scorers: list[ConfiguredScorer], period: Period) -> str:
    return lines_of(vars(report_data(lake, scorers, period)))


def lines_of(values: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {in_order(value)}" for name, value in sorted(values.items()))


def in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: ten_digits(item) for name, item in sorted(value.items())}
    if isinstance(value, list):
        return [in_order(item) for item in value]
    if isinstance(value, Incident):
        worst = [(s.measure, s.scorer, s.hour, ten_digits(s.value), ten_digits(s.baseline)) for s in value.worst]
        return value.experiment_id, value.start, value.end, worst
    if not isinstance(value, pd.DataFrame):
        return value
    rows = value.drop(columns=[name for name in ("assessed_at", "dagster_run_id") if name in value])
    rows = rows.sort_values(list(rows.columns[:5]), key=lambda c: c.astype(str)).round(9)
    return rows.to_csv(index=False, float_format="%.10g")


def ten_digits(value: Any) -> Any:
    """The number to nine decimals and ten digits; engines add up in different orders and differ beyond that."""
    return float(f"{round(value, 9):.10g}") if isinstance(value, float) else value


def of_pandas(frame: pd.DataFrame) -> pa.Table:
    frame.attrs.clear()
    return pa.Table.from_pandas(frame, preserve_index=False)


def one_row(values: dict[str, object]) -> pa.Table:
    return pa.table({name: [str(value)] for name, value in values.items()})
