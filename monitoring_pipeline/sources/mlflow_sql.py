"""Traces read straight from the database of a self-hosted MLflow, read-only.

What a trace is, MLflow's own store decides (`batch_get_traces` in mlflow/store/tracking/sqlalchemy_store.py). A
usual trace is flattened here without the entities that MLflow makes of it; any other goes through these.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow.entities import SpanType, Trace, TraceData, TraceState
from mlflow.entities.span import LazySpan
from mlflow.exceptions import MlflowException, MlflowTraceDataException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking.dbmodels.models import (
    SqlAssessments,
    SqlExperiment,
    SqlSpan,
    SqlTraceInfo,
    SqlTraceMetadata,
    SqlTraceTag,
)
from mlflow.store.tracking.utils.trace_analytics import (
    COST_COLUMN_BY_KEY,
    PROMOTED_TRACE_METADATA_KEYS,
    TOKEN_COLUMN_BY_KEY,
    token_count_or_none,
)
from mlflow.tracing.constant import (
    MAX_CHARS_IN_TRACE_INFO_METADATA as METADATA_CHARACTERS,
)
from mlflow.tracing.constant import (
    MAX_CHARS_IN_TRACE_INFO_TAGS_KEY as TAG_KEY_CHARACTERS,
)
from mlflow.tracing.constant import (
    MAX_CHARS_IN_TRACE_INFO_TAGS_VALUE as TAG_CHARACTERS,
)
from mlflow.tracing.constant import (
    TraceMetadataKey,
)
from mlflow.tracing.otel.translation import translate_loaded_span
from mlflow.tracing.utils.artifact_utils import get_archive_uri_for_trace, get_artifact_uri_for_trace
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.tracking import in_a_line
from monitoring_pipeline.settings import without_password
from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace, flatten_parts
from monitoring_pipeline.windows import EPOCH, Window, floor_hour, from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo
    from sqlalchemy import URL, ColumnElement, Connection, Engine, Row

PAGE = 500
# A page's JSON is in memory several times: as text, parsed, and as rows.
PAGE_BYTES = 8 * 2**20
BUSY_TIMEOUT_S = 20  # how long a read of SQLite waits for another's commit; as long as MLflow's own
CONNECT_TIMEOUT_S = 5
MILLISECOND = timedelta(milliseconds=1)
LONGEST_MS = 315_576_000_000_000  # that a Duration of protocol buffers can be

SPANS_LOCATION_TAG = "mlflow.trace.spansLocation"
TRACE_NAME_TAG = "mlflow.traceName"
DECODER = json.JSONDecoder()
# As the JSON of a span has them, and all but the one that says nothing.
NAMED_TYPES = {json.dumps(value) for name, value in vars(SpanType).items() if name.isupper()} - {'"UNKNOWN"'}

log = logging.getLogger(__name__)


@contextmanager
def opened(address: str) -> Iterator[Engine]:
    """The MLflow database at `address` (sqlite:///… or postgresql://…), to read only; each transaction is a snapshot.

    Raises:
        TrackingError: it is no such database, cannot be reached, or is of another version of MLflow; and instead of any
            error of the database within the block.
    """

    shown = without_password(address)
    try:
        engine = _engine(address)
        try:
            _check_revision(engine, shown)
            yield engine
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error
        raise TrackingError(
            f"cannot read the MLflow database at {shown}: {in_a_line(reason)}; check [archive] location, "
            "or [mlflow] tracking_uri where that is not set"
        ) from None  # the cause may hold the password
    except ImportError as error:
        raise TrackingError(f"{error}: to read {shown}, install monitoring-pipeline[postgresql]") from None


def experiment_names(engine: Engine, names: list[str]) -> dict[str, str]:
    """The experiments of these names, or all that are not deleted where there are none: id -> name.

    Raises:
        TrackingError: there is no experiment of a name.
    """
    query = sa.select(SqlExperiment.experiment_id, SqlExperiment.name, SqlExperiment.lifecycle_stage)
    with engine.begin() as connection:
        experiments = connection.execute(query.order_by(SqlExperiment.experiment_id)).all()
    active = {str(row.experiment_id): row.name for row in experiments if row.lifecycle_stage == "active"}
    if not names:
        return active
    found = {str(row.experiment_id): row.name for row in experiments if row.name in names}
    if missing := [name for name in names if name not in found.values()]:
        wanted, others = (", ".join(map(repr, names)) for names in (missing, sorted(active.values())))
        raise TrackingError(f"no experiment {wanted} at {without_password(str(engine.url))}; it has {others}")
    return found


def read_traces(
    engine: Engine, experiment_ids: list[str], window: Window, tracking_uri: str
) -> Iterator[list[FlatTrace | Trace | UnreadableTrace]]:
    """All traces of the experiments that start in `window`, each once, oldest first, in batches; unfinished ones too.

    Spans that MLflow keeps outside the database are fetched by its client, for which `tracking_uri` tells the server.
    Each batch is one snapshot of the database, of at most `PAGE` traces and about `PAGE_BYTES`, or a single trace.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    for heads in _pages(engine, experiment_ids, window):
        yield _read(engine, heads, tracking_uri)


def read_moved(
    engine: Engine, hours: Mapping[str, datetime], tracking_uri: str
) -> Iterator[list[FlatTrace | Trace | UnreadableTrace]]:
    """Those of the traces (id -> hour) that the database has in another hour than that, in batches.

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


def _engine(address: str) -> Engine:
    url = sa.make_url(address)
    match url.get_backend_name():
        case "sqlite":
            return _sqlite(url)
        case "postgresql":
            if url.drivername == "postgresql":  # the driver that we install; by itself SQLAlchemy 2.1 takes another
                url = url.set(drivername="postgresql+psycopg2")
            options = f"{url.query.get('options', '')} -c default_transaction_read_only=on"
            timeout = {"connect_timeout": CONNECT_TIMEOUT_S}
            return sa.create_engine(
                url, isolation_level="REPEATABLE READ", connect_args=timeout | {"options": options.strip()}
            )
        case other:
            raise TrackingError(
                f'source = "mlflow-sql" reads a database of SQLite or PostgreSQL, not of {other} '
                f"({without_password(address)}); set [archive] location"
            )


def _sqlite(url: URL) -> Engine:
    file = Path(url.database or "").absolute().as_uri()
    read_only = sa.URL.create("sqlite", database=file, query={"mode": "ro", "uri": "true"})
    # Without an isolation level Python's driver leaves transactions to us: of its own it opens none for a SELECT.
    engine = sa.create_engine(read_only, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _check_revision(engine: Engine, shown: str) -> None:
    with engine.begin() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != (expected := _head_revision()):
        raise TrackingError(
            f"the MLflow database at {shown} has the schema revision {found}, not {expected} of MLflow "
            f'{mlflow.__version__} here: set [archive] source = "mlflow", or bring both to one version of MLflow'
        )


@functools.cache
def _head_revision() -> str | None:
    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()


def _pages(engine: Engine, experiment_ids: list[str], window: Window) -> Iterator[list[Row[Any]]]:
    """The id, time and status of each trace of the window, in the order of time, as many as are read at once."""
    since_ms, end_ms = ((moment - EPOCH) // MILLISECOND for moment in (window.start, window.end))
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
    # The former is told without reading a long content, which SQLite of this age cannot do.
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


@dataclass
class _Stored:
    """What the database has of a trace but for its spans."""

    info: dict[str, Any]
    tags: dict[str, str | None] = field(default_factory=dict)
    metadata: dict[str, str | None] = field(default_factory=dict)
    assessments: list[dict[str, Any]] = field(default_factory=list)


def _read(engine: Engine, heads: Sequence[Any], tracking_uri: str) -> list[FlatTrace | Trace | UnreadableTrace]:
    """The traces as they are now; one whose text is no UTF-8 fails the queries for all, and is found by halving."""
    try:
        with engine.begin() as connection:
            stored, contents = _query(connection, [head.request_id for head in heads])
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        experiment_names(engine, [])  # raises when it is the database that fails, not a trace
        if len(heads) == 1:
            [head] = heads
            return [_unreadable(head.request_id, head.timestamp_ms, head.status, str(error))]
        middle = len(heads) // 2
        return _read(engine, heads[:middle], tracking_uri) + _read(engine, heads[middle:], tracking_uri)
    return [
        _trace(stored[head.request_id], contents[head.request_id], tracking_uri)
        for head in heads
        if head.request_id in stored
    ]


def _query(connection: Connection, trace_ids: list[str]) -> tuple[dict[str, _Stored], dict[str, list[str]]]:
    """What is stored of each trace, and the JSON of its spans, by trace id."""
    # No order: where it decides (assessments, spans that start together), it is the one that MLflow's queries get.
    infos = sa.select(SqlTraceInfo.__table__).where(SqlTraceInfo.request_id.in_(trace_ids))
    stored = {info["request_id"]: _Stored(dict(info)) for info in connection.execute(infos).mappings()}
    tags = sa.select(SqlTraceTag.request_id, SqlTraceTag.key, SqlTraceTag.value)
    for trace_id, key, value in connection.execute(tags.where(SqlTraceTag.request_id.in_(trace_ids))).all():
        stored[trace_id].tags[key] = value
    metadata = sa.select(SqlTraceMetadata.request_id, SqlTraceMetadata.key, SqlTraceMetadata.value)
    for trace_id, key, value in connection.execute(metadata.where(SqlTraceMetadata.request_id.in_(trace_ids))).all():
        stored[trace_id].metadata[key] = value
    assessments = sa.select(SqlAssessments.__table__).where(SqlAssessments.trace_id.in_(trace_ids))
    for assessment in connection.execute(assessments).mappings():
        stored[assessment["trace_id"]].assessments.append(dict(assessment))
    columns = sa.select(SqlSpan.trace_id, SqlSpan.content, SqlSpan.parent_span_id, SqlSpan.start_time_unix_nano)
    spans = connection.execute(columns.where(SqlSpan.trace_id.in_(trace_ids))).all()
    contents: dict[str, list[str]] = defaultdict(list)
    # Roots first, then in the order of time; MLflow empties the content of what it has moved elsewhere.
    for trace_id, content, _, _ in sorted(spans, key=lambda span: (span[2] is not None, span[3])):
        if content != "":
            contents[trace_id].append(content)
    return stored, contents


def _trace(stored: _Stored, contents: list[str], tracking_uri: str) -> FlatTrace | Trace | UnreadableTrace:
    in_database = contents and stored.tags.get(SPANS_LOCATION_TAG) == "TRACKING_STORE"
    if in_database and abs(stored.info["execution_time_ms"] or 0) <= LONGEST_MS:
        try:
            return FlatTrace(_row(stored, contents), functools.partial(_info, stored))
        except Exception as error:  # noqa: BLE001 - malformed content raises anything, and does so again below
            log.debug("trace %s: %s", stored.info["request_id"], error)
    return _by_entities(stored, contents, tracking_uri)


def _row(stored: _Stored, contents: list[str]) -> dict[str, Any]:
    return flatten_parts(_info_json(stored), [_span(content) for content in contents])


def _span(content: str) -> dict[str, Any]:
    span, end = DECODER.raw_decode(content)  # a third less time than `json.loads`, for spans of 1 kB
    if end != len(content):
        span = json.loads(content)
    if span["attributes"].get("mlflow.spanType") not in NAMED_TYPES:
        translate_loaded_span(span)  # MLflow looks for the type among other attributes
    return span


def _info_json(stored: _Stored) -> dict[str, Any]:
    """What `to_dict` of MLflow's TraceInfo gives, without the protocol buffers that it goes through."""
    info, tags = stored.info, stored.tags
    if info["trace_name"] is not None or TRACE_NAME_TAG in tags:
        tags = {key: value for key, value in tags.items() if key != TRACE_NAME_TAG} | _given(
            {TRACE_NAME_TAG: info["trace_name"]}
        )
    started_ms = info["timestamp_ms"]
    started = from_milliseconds(started_ms).isoformat(timespec="milliseconds" if started_ms % 1000 else "seconds")
    return {
        "trace_id": info["request_id"],
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": str(info["experiment_id"])},
        },
        "request_time": started.replace("+00:00", "Z"),
        "state": TraceState(info["status"]).value,
    } | _given(
        {
            "client_request_id": info["client_request_id"],
            "request_preview": info["request_preview"],
            "response_preview": info["response_preview"],
            "execution_duration_ms": info["execution_time_ms"],
            "trace_metadata": _cut(_metadata(stored), METADATA_CHARACTERS, METADATA_CHARACTERS) or None,
            "tags": _cut(tags, TAG_KEY_CHARACTERS, TAG_CHARACTERS) or None,
            "assessments": [SqlAssessments(**row).to_mlflow_entity().to_dictionary() for row in stored.assessments]
            or None,
        }
    )


def _metadata(stored: _Stored) -> dict[str, str | None]:
    """The trace's metadata, with those that MLflow keeps in columns; its `compatibility_metadata_from_columns`."""
    info = stored.info
    metadata = {key: value for key, value in stored.metadata.items() if key not in PROMOTED_TRACE_METADATA_KEYS}
    if info["session_id"] is not None:
        metadata[TraceMetadataKey.TRACE_SESSION] = info["session_id"]
    tokens = _given({key: _whole(info[column]) for key, column in TOKEN_COLUMN_BY_KEY.items()})
    if tokens:
        metadata[TraceMetadataKey.TOKEN_USAGE] = json.dumps(tokens)
    if cost := _given({key: info[column] for key, column in COST_COLUMN_BY_KEY.items()}):
        metadata[TraceMetadataKey.COST] = json.dumps(cost)
    return metadata


def _whole(count: Any) -> int | None:
    return count if count is None or type(count) is int else token_count_or_none(count)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _cut(texts: dict[str, str | None], key_characters: int, value_characters: int) -> dict[str, str]:
    return {key[:key_characters]: str(value)[:value_characters] for key, value in texts.items()}


def _by_entities(stored: _Stored, contents: list[str], tracking_uri: str) -> Trace | UnreadableTrace:
    """The trace as MLflow's client gives it, or the reason why it does not."""
    try:
        info = _info(stored)
    except Exception as error:  # noqa: BLE001 - malformed content raises anything
        return _unreadable(stored.info["request_id"], stored.info["timestamp_ms"], stored.info["status"], str(error))
    try:
        spans = _spans(info, contents, tracking_uri)
        if spans or info.state == "IN_PROGRESS":
            return Trace(info, TraceData(spans))
        reason = "its spans are missing or corrupt"
    except MlflowException as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - malformed content raises anything
        reason = f"{type(error).__name__}: {error}"
    return UnreadableTrace(info.trace_id, from_milliseconds(info.request_time), reason, repr(info))


def _info(stored: _Stored) -> TraceInfo:
    return SqlTraceInfo(
        **stored.info,
        tags=[SqlTraceTag(key=key, value=value) for key, value in stored.tags.items()],
        request_metadata=[SqlTraceMetadata(key=key, value=value) for key, value in stored.metadata.items()],
        assessments=[SqlAssessments(**row) for row in stored.assessments],
    ).to_mlflow_entity()


def _spans(info: TraceInfo, contents: list[str], tracking_uri: str) -> list[Span]:
    match info.tags.get(SPANS_LOCATION_TAG):
        case "TRACKING_STORE":
            return [LazySpan.from_stored_content(content) for content in contents]
        case "ARCHIVE_REPO":
            archived = get_artifact_repository(get_archive_uri_for_trace(info), tracking_uri)
            return archived.download_archived_trace_data().spans
        case _:
            try:
                artifacts = get_artifact_repository(get_artifact_uri_for_trace(info), tracking_uri)
                return TraceData.from_dict(artifacts.download_trace_data()).spans
            except MlflowTraceDataException as error:
                log.warning("no spans of trace %s in its artifacts: %s", info.trace_id, error)
                return []


def _unreadable(trace_id: str, started_ms: int, status: str, reason: str) -> UnreadableTrace:
    raw = json.dumps({"trace_id": trace_id, "timestamp_ms": started_ms, "status": status})
    return UnreadableTrace(trace_id, from_milliseconds(started_ms), reason, raw)
