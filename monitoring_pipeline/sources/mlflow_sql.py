"""The source `mlflow-sql`: traces of a self-hosted MLflow, read directly and read-only from its database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import sqlalchemy as sa
from mlflow.store.tracking.dbmodels.models import SqlAssessments, SqlSpan, SqlTraceInfo, SqlTraceMetadata, SqlTraceTag
from sqlalchemy.exc import DBAPIError

from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.sources.mlflow_database import experiment_names
from monitoring_pipeline.sources.mlflow_sql_trace import StoredTrace, trace_of, unreadable
from monitoring_pipeline.windows import EPOCH, HOUR, Window, floor_hour, from_milliseconds, to_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from sqlalchemy import ColumnElement, Connection, Engine, Row

    from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace

SqlBatch: TypeAlias = "list[FlatTrace | Trace | UnreadableTrace]"

PAGE = 500
# Bounds memory: the JSON of a batch exists several times, as text, parsed and as rows.
PAGE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class MlflowSqlSource:
    """The experiments `experiment_names` (id -> name) of an open database; a `Source`.

    MLflow's client fetches spans that are stored outside the database from the server at `tracking_uri`.
    """

    database: Engine
    experiment_names: dict[str, str]
    tracking_uri: str

    def counts(self, window: Window) -> dict[datetime, HourCounts]:
        """As `Source.counts`, using the index on trace times.

        The mark is the latest change of an assessment, and the number of writes of spans to traces that have ended.
        """
        return hour_counts(self.database, list(self.experiment_names), window)

    def read(self, window: Window) -> Iterator[SqlBatch]:
        """As `Source.read`, oldest first."""
        return read_traces(self.database, list(self.experiment_names), window, self.tracking_uri)

    def moved(self, hours: Mapping[str, datetime]) -> Iterator[SqlBatch]:
        """As `Source.moved`."""
        return read_moved(self.database, hours, self.tracking_uri)


def read_traces(engine: Engine, experiment_ids: list[str], window: Window, tracking_uri: str) -> Iterator[SqlBatch]:
    """All traces of the experiments that start in `window`, each once, oldest first, including those in progress.

    Each batch is one snapshot of the database. It holds at most `PAGE` traces and about `PAGE_BYTES` of spans, or one
    larger trace.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    for heads in _pages(engine, experiment_ids, window):
        yield _read(engine, heads, tracking_uri)


def read_moved(engine: Engine, hours: Mapping[str, datetime], tracking_uri: str) -> Iterator[SqlBatch]:
    """The traces (id -> hour in the archive) that the database has in another hour.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    columns = sa.select(SqlTraceInfo.request_id, SqlTraceInfo.timestamp_ms, SqlTraceInfo.status)
    for first in range(0, len(hours), PAGE):
        trace_ids = list(hours)[first : first + PAGE]
        with engine.begin() as connection:
            heads = connection.execute(columns.where(SqlTraceInfo.request_id.in_(trace_ids))).all()
        for head in heads:
            if floor_hour(from_milliseconds(head.timestamp_ms)) != hours[head.request_id]:
                yield _read(engine, [head], tracking_uri)


def _pages(engine: Engine, experiment_ids: list[str], window: Window) -> Iterator[list[Row[Any]]]:
    """The id, time and status of the window's traces, oldest first, one batch at a time."""
    since_ms, end_ms = to_milliseconds(window.start), to_milliseconds(window.end)
    last_id = ""
    while True:
        listed = _listed(engine, experiment_ids, since_ms, end_ms, last_id)
        page: list[Row[Any]] = []
        size = 0
        for head in listed:
            if page and size + head.bytes > PAGE_BYTES:
                yield page
                page, size = [], 0
            page.append(head)
            size += head.bytes
        if page:
            yield page
        if len(listed) < PAGE:
            return
        since_ms, last_id = listed[-1].timestamp_ms, listed[-1].request_id


def _listed(engine: Engine, experiment_ids: list[str], since_ms: int, end_ms: int, last_id: str) -> Sequence[Any]:
    content: ColumnElement[Any] = SqlSpan.content
    # PostgreSQL returns the length without reading a long value; SQLite, in versions still common, cannot.
    length = (
        sa.func.octet_length(content)
        if engine.dialect.name == "postgresql"
        else sa.func.length(sa.cast(content, sa.LargeBinary))
    )
    size = sa.select(sa.func.sum(length)).where(SqlSpan.trace_id == SqlTraceInfo.request_id).scalar_subquery()
    query = (
        sa.select(
            SqlTraceInfo.request_id,
            SqlTraceInfo.timestamp_ms,
            SqlTraceInfo.status,
            sa.func.coalesce(size, 0).label("bytes"),
        )
        .where(SqlTraceInfo.experiment_id.in_([int(experiment_id) for experiment_id in experiment_ids]))
        .where(SqlTraceInfo.timestamp_ms >= since_ms, SqlTraceInfo.timestamp_ms < end_ms)
        .where((SqlTraceInfo.timestamp_ms > since_ms) | (SqlTraceInfo.request_id > last_id))
        .order_by(SqlTraceInfo.timestamp_ms, SqlTraceInfo.request_id)
        .limit(PAGE)
    )
    with engine.begin() as connection:
        return connection.execute(query).all()


def _read(engine: Engine, heads: Sequence[Any], tracking_uri: str) -> SqlBatch:
    """The traces as they are now. A trace whose text is not UTF-8 fails the query; halving the batch isolates it."""
    try:
        with engine.begin() as connection:
            stored, contents = _query(connection, [head.request_id for head in heads])
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        experiment_names(engine, [])  # raises if the database fails, not a trace
        if len(heads) == 1:
            [head] = heads
            return [unreadable(head.request_id, head.timestamp_ms, head.status, str(error))]
        middle = len(heads) // 2
        return _read(engine, heads[:middle], tracking_uri) + _read(engine, heads[middle:], tracking_uri)
    return [
        trace_of(stored[head.request_id], contents[head.request_id], tracking_uri)
        for head in heads
        if head.request_id in stored
    ]


def _query(connection: Connection, trace_ids: list[str]) -> tuple[dict[str, StoredTrace], dict[str, list[str]]]:
    """The stored rows of each trace and the JSON of its spans, by trace id."""
    # No ORDER BY on purpose: ties (assessments, spans that start together) must come out in the order that MLflow's own
    # queries give.
    infos = connection.execute(sa.select(SqlTraceInfo.__table__).where(SqlTraceInfo.request_id.in_(trace_ids)))
    columns = tuple(infos.keys())  # faster than `infos.mappings()`
    stored = {info.request_id: StoredTrace(dict(zip(columns, info, strict=True))) for info in infos}
    tags = sa.select(SqlTraceTag.request_id, SqlTraceTag.key, SqlTraceTag.value)
    for trace_id, key, value in connection.execute(tags.where(SqlTraceTag.request_id.in_(trace_ids))).all():
        stored[trace_id].tags[key] = value
    metadata = sa.select(SqlTraceMetadata.request_id, SqlTraceMetadata.key, SqlTraceMetadata.value)
    for trace_id, key, value in connection.execute(metadata.where(SqlTraceMetadata.request_id.in_(trace_ids))).all():
        stored[trace_id].metadata[key] = value
    assessments = sa.select(SqlAssessments.__table__).where(SqlAssessments.trace_id.in_(trace_ids))
    for assessment in connection.execute(assessments).mappings():
        stored[assessment["trace_id"]].assessments.append(dict(assessment))
    content = sa.select(SqlSpan.trace_id, SqlSpan.content, SqlSpan.parent_span_id, SqlSpan.start_time_unix_nano)
    spans = connection.execute(content.where(SqlSpan.trace_id.in_(trace_ids))).all()
    contents: dict[str, list[str]] = defaultdict(list)
    # Roots first, then by start. MLflow sets the content to "" when it moves spans out of the database.
    for trace_id, content, _, _ in sorted(spans, key=lambda span: (span[2] is not None, span[3])):
        if content != "":
            contents[trace_id].append(content)
    return stored, contents


def hour_counts(engine: Engine, experiment_ids: list[str], window: Window) -> dict[datetime, HourCounts]:
    """The counts of each hour in `window`, from one snapshot.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    traces, assessments = _counting_queries(experiment_ids, window)
    with engine.begin() as connection:
        counted = connection.execute(traces).all()
        assessed = {row.number: row for row in connection.execute(assessments).all()}
    counts: dict[datetime, HourCounts] = {}
    for row in counted:
        assessed_hour = assessed.get(row.number)
        counts[EPOCH + row.number * HOUR] = HourCounts(
            row.traces,
            row.in_progress,
            assessed_hour.assessments if assessed_hour else 0,
            "; ".join([*([f"changed {assessed_hour.changed_ms}"] if assessed_hour else []), f"written {row.writes}"]),
        )
    return counts


def _counting_queries(experiment_ids: list[str], window: Window) -> tuple[Any, Any]:
    """Two queries per hour number since 1970: traces, those in progress, and writes; assessments and latest change."""
    # A literal: with parameters in SELECT and GROUP BY, PostgreSQL treats the two expressions as different.
    hour_ms: ColumnElement[int] = sa.literal_column(str(HOUR // timedelta(milliseconds=1)), sa.BigInteger)
    number = (SqlTraceInfo.timestamp_ms // hour_ms).label("number")
    within = (
        SqlTraceInfo.experiment_id.in_([int(experiment_id) for experiment_id in experiment_ids])
        & (SqlTraceInfo.timestamp_ms >= to_milliseconds(window.start))
        & (SqlTraceInfo.timestamp_ms < to_milliseconds(window.end))
    )
    is_in_progress = SqlTraceInfo.status == "IN_PROGRESS"
    in_progress = sa.func.sum(sa.case((is_in_progress, 1), else_=0))
    # Not those of traces in progress: each of their spans would make the hour due.
    writes = sa.func.sum(sa.case((is_in_progress, 0), else_=SqlTraceInfo.db_payload_generation))
    traces = sa.select(
        number, sa.func.count().label("traces"), in_progress.label("in_progress"), writes.label("writes")
    )
    assessments = sa.select(
        number,
        sa.func.count().label("assessments"),
        sa.func.max(SqlAssessments.last_updated_timestamp).label("changed_ms"),
    ).join_from(SqlTraceInfo, SqlAssessments, SqlAssessments.trace_id == SqlTraceInfo.request_id)
    return traces.where(within).group_by("number"), assessments.where(within).group_by("number")
