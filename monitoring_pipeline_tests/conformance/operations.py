"""All operations on a lake, in order; each returns the resulting rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from mlflow.entities import Feedback, TraceState

from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import in_window
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    HOURLY_PERFORMANCE,
    SCORER_COVERAGE,
    SUPERSEDED_ASSESSMENTS,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.resources.lake_writer import MIDNIGHT, traces
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.sources.stores import START

DAY = Window(MIDNIGHT, MIDNIGHT + timedelta(days=1))
TWO_TO_FOUR = Window(MIDNIGHT + 2 * HOUR, MIDNIGHT + 4 * HOUR)
ALL = Window(MIDNIGHT - timedelta(days=1), MIDNIGHT + timedelta(days=3))


def all_operations() -> Iterator[tuple[str, Callable[[LakeResource], pa.Table]]]:
    """The operations of this module by name, in order; each continues with the lake that the previous one left."""
    for name, operation in list(globals().items()):
        if inspect.isfunction(operation) and name.startswith("op_"):
            yield name.removeprefix("op_"), operation


def op_tables_are_made(lake: LakeResource) -> pa.Table:
    made = (AGENT_TRACES, ASSESSMENTS, SCORER_COVERAGE, SUPERSEDED_ASSESSMENTS, TRACE_PERFORMANCE)
    return figures_table(**{table.name: lake.read(table).count() + lake.version(table) for table in made})


def op_insert(lake: LakeResource) -> pa.Table:
    rows = traces(*((f"t{hour}", hour, "x") for hour in range(30)))
    return left(lake, AGENT_TRACES, lake.insert(AGENT_TRACES, rows))


def op_insert_what_is_there(lake: LakeResource) -> pa.Table:
    rows = traces(("t1", 1, "other"), ("new", 1, "x"), ("t1", 2, "x"))
    return left(lake, AGENT_TRACES, lake.insert(AGENT_TRACES, rows))


def op_insert_of_one_key_twice(lake: LakeResource) -> pa.Table:
    return left(lake, AGENT_TRACES, lake.insert(AGENT_TRACES, traces(("twice", 3, "first"), ("twice", 3, "last"))))


def op_upsert(lake: LakeResource) -> pa.Table:
    rows = traces(("t1", 1, "changed"), ("t2", 2, "x"), ("newer", 5, "x"))
    return left(lake, AGENT_TRACES, lake.upsert(AGENT_TRACES, rows))


def op_upsert_that_changes_nothing(lake: LakeResource) -> pa.Table:
    before = lake.version(AGENT_TRACES)
    written = lake.upsert(AGENT_TRACES, traces(("t2", 2, "x")))
    return left(lake, AGENT_TRACES, written, commits=lake.version(AGENT_TRACES) - before)


def op_upsert_of_nothing(lake: LakeResource) -> pa.Table:
    return left(lake, AGENT_TRACES, lake.upsert(AGENT_TRACES, traces()))


def op_upsert_of_keys_that_are_null(lake: LakeResource) -> pa.Table:
    def line(name: str | None, digest: str, archived: int) -> dict[str, object]:
        return {"hour": MIDNIGHT, "experiment_id": name, "scorer": "s", "scorer_digest": digest, "archived": archived}

    first = [line(None, "a", 1), line("1", "a", 1), line("1", "b", 1)]
    second = [line(None, "a", 2), line("1", "a", 1), line("2", "b", 1)]
    written = [lake.upsert(SCORER_COVERAGE, filled(SCORER_COVERAGE, rows)) for rows in (first, second)]
    return left(lake, SCORER_COVERAGE, *written)


def op_read_a_window(lake: LakeResource) -> pa.Table:
    return lake.read(AGENT_TRACES, TWO_TO_FOUR).toArrow()


def op_read_columns(lake: LakeResource) -> pa.Table:
    return lake.read_columns(AGENT_TRACES, TWO_TO_FOUR, "trace_id", "trace_hour", "content_digest")


def op_read_a_version(lake: LakeResource) -> pa.Table:
    version = lake.version(AGENT_TRACES)
    lake.upsert(AGENT_TRACES, traces(("later", 1, "x")))
    return pa.concat_tables(
        figures_table(then=lake.read(AGENT_TRACES, DAY, pinned).count()) for pinned in (version, version + 1)
    )


def op_read_written_since(lake: LakeResource) -> pa.Table:
    now = datetime.now(UTC)
    return figures_table(
        today=lake.read_written_since(AGENT_TRACES, now, "trace_id").num_rows > 0,
        tomorrow=lake.read_written_since(AGENT_TRACES, now + timedelta(days=1), "trace_id").num_rows,
    )


def op_replace(lake: LakeResource) -> pa.Table:
    return left(lake, AGENT_TRACES, lake.replace(AGENT_TRACES, TWO_TO_FOUR, traces(("only", 2, "x"))))


def op_replace_by_what_the_engine_made(lake: LakeResource) -> pa.Table:
    from pyspark.sql import functions as F

    rows = lake.read(AGENT_TRACES, DAY).select(
        "trace_id",
        "trace_hour",
        "experiment_id",
        F.lit("agent").alias("trace_name"),
        F.lit("OK").alias("status"),
        *(F.lit(1).cast("long").alias(name) for name in ("span_count", "error_span_count")),
        *(F.lit(0.1).alias(name) for name in ("duration_ms", "total_span_duration_ms", "avg_span_duration_ms")),
        *(F.lit(None).cast("long").alias(name) for name in ("input_tokens", "output_tokens", "total_tokens")),
        F.lit(0.024040000000000002).alias("cost_usd"),
    )
    return left(lake, TRACE_PERFORMANCE, lake.replace(TRACE_PERFORMANCE, DAY, rows))


def op_replace_by_nothing(lake: LakeResource) -> pa.Table:
    nothing = lake.read(TRACE_PERFORMANCE, TWO_TO_FOUR).limit(0)
    return left(lake, TRACE_PERFORMANCE, *(lake.replace(TRACE_PERFORMANCE, TWO_TO_FOUR, nothing) for _ in range(2)))


def op_refuse_rows_outside_of_the_window(lake: LakeResource) -> pa.Table:
    return refused(lake, AGENT_TRACES, lambda: lake.replace(AGENT_TRACES, TWO_TO_FOUR, traces(("outside", 7, "x"))))


def op_refuse_a_row_without_its_hour(lake: LakeResource) -> pa.Table:
    rows = filled(AGENT_TRACES, [{"trace_id": "a", "created_at": MIDNIGHT, "date": MIDNIGHT.date()}])
    return refused(lake, AGENT_TRACES, lambda: lake.replace(AGENT_TRACES, DAY, rows))


def op_refuse_other_columns(lake: LakeResource) -> pa.Table:
    rows = traces(("a", 2, "x"))
    return pa.concat_tables(
        refused(lake, AGENT_TRACES, lambda wrong=wrong: lake.replace(AGENT_TRACES, DAY, wrong))
        for wrong in (rows.drop_columns(["spans"]), rows.append_column("more", pa.nulls(1, pa.string())))
    )


def op_an_older_table_gains_columns(lake: LakeResource) -> pa.Table:
    names = [name for name in HOURLY_PERFORMANCE.schema.names if name != "cost_usd"]
    older = replace(
        HOURLY_PERFORMANCE,
        name="older",
        schema=pa.schema([HOURLY_PERFORMANCE.schema.field(name) for name in names]),
    )
    line = {"hour": MIDNIGHT, "experiment_id": "1", "trace_count": 3, "avg_duration_ms": 0.1}
    lake.replace(older, DAY, filled(older, [line]))
    forget_what_is_open()
    grown = replace(older, schema=HOURLY_PERFORMANCE.schema)
    later = {**line, "hour": MIDNIGHT + HOUR, "cost_usd": 0.5}
    lake.upsert(grown, filled(grown, [later]))
    return lake.read(grown).toArrow()


def op_maintain(lake: LakeResource) -> pa.Table:
    done = lake.maintain(AGENT_TRACES)
    return left(lake, AGENT_TRACES, int(done["files_removed"] > done["files_added"]), done["files_deleted"])


def op_remove(lake: LakeResource) -> pa.Table:
    """Removes one of the traces of two hours in the window; missing traces, or traces outside of it, make no commit."""
    lake.insert(AGENT_TRACES, traces(("stays", 2, "x"), ("goes", 3, "x"), ("outside", 7, "x")))
    removed = lake.remove(AGENT_TRACES, TWO_TO_FOUR, "trace_id", ["goes", "outside"])
    before = lake.version(AGENT_TRACES)
    again = lake.remove(AGENT_TRACES, TWO_TO_FOUR, "trace_id", ["goes", "outside"])
    return left(lake, AGENT_TRACES, removed, again, commits=lake.version(AGENT_TRACES) - before)


def op_remove_before(lake: LakeResource) -> pa.Table:
    next_day = DAY.end.date()
    lake.insert(AGENT_TRACES, traces(("of the next day", 25, "x")))
    removed = lake.remove_before(AGENT_TRACES, next_day)
    before = lake.version(AGENT_TRACES)
    again = lake.remove_before(AGENT_TRACES, next_day)
    return left(lake, AGENT_TRACES, int(removed > 0), again, commits=lake.version(AGENT_TRACES) - before)


def op_purge(lake: LakeResource) -> pa.Table:
    lake.purge(AGENT_TRACES)
    return left(lake, AGENT_TRACES)


def op_traces_that_change_are_scored_again(lake: LakeResource) -> pa.Table:
    """Traces with odd claims; one has not ended at first, and one changes."""
    [scorer] = load_scorers([ScorerSettings(name="quality", scorer=f"{SHIPPED_SCORERS}:response_quality")])
    odd, unfinished, changing = made_trace(1), made_trace(2, state=TraceState.IN_PROGRESS), made_trace(3, answer="no")
    odd.info.execution_duration = -5
    odd.info.assessments = [Feedback(name="nice", value=math.nan, trace_id=odd.info.trace_id)]
    hour = Window(START, START + HOUR)
    archive_traces(lake, hour, [odd, unfinished, changing])
    score_window(lake, scorer, hour, "run")
    archive_traces(lake, hour, [made_trace(2), made_trace(3, answer="a longer answer")])
    score_window(lake, scorer, hour, "run")
    results = [
        lake.read(table, hour).select("trace_id", "value", "rationale", "content_digest", "unfinished")
        for table in (ASSESSMENTS, SUPERSEDED_ASSESSMENTS)
    ]
    claims = lake.read(AGENT_TRACES, hour).select("trace_id", "duration_ms", "implausible")
    return results[0].unionByName(results[1]).join(claims, "trace_id").orderBy("trace_id", "value").toArrow()


def figures_table(**figures: int) -> pa.Table:
    return pa.table({"figure": [*figures], "value": [int(value) for value in figures.values()]})


def left(lake: LakeResource, table: Table, *figures: int, commits: int = 0) -> pa.Table:
    """The rows of the table, with the figures in a column."""
    rows = lake.read(table).where(in_window(table, ALL)).toArrow().combine_chunks()
    return rows.append_column("figures", pa.array([str([*figures, commits])] * rows.num_rows))


def refused(lake: LakeResource, table: Table, write: Callable[[], object]) -> pa.Table:
    """The rows of the table, after a write that must fail and leave them unchanged."""
    before = lake.version(table)
    try:
        write()
    except LakeError:
        return left(lake, table, commits=lake.version(table) - before)
    raise AssertionError(f"{table.name}: nothing was refused")


def filled(table: Table, rows: list[dict[str, object]]) -> pa.Table:
    columns = [column for column in table.schema if column.name != "date" or "date" in rows[0]]
    return pa.Table.from_pylist(rows, schema=pa.schema([column.with_nullable(True) for column in columns]))


def forget_what_is_open() -> None:
    from monitoring_pipeline.resources import catalog_tables

    catalog_tables._opened.clear()
