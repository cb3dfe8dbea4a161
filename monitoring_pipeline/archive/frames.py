"""Traces that stand in tables: the engine finds and groups them, its workers make rows of `agent_traces` of them.

A source gives a DataFrame with a row a trace: `trace_id`, `started` (as a timestamp or a number, see `nanoseconds`) and
whatever its own `build` makes an `mlflow.entities.Trace` of.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.archive.merging import ArchiveCounts, encodable, removed, update_quarantine
from monitoring_pipeline.archive.moving import PLACE, follow_moved, places_of
from monitoring_pipeline.archive.tombstones import deleted_digests, trace_digest
from monitoring_pipeline.errors import TrackingError, first_line
from monitoring_pipeline.resources.delta_folders import for_sail
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.settings import in_catalog, without_password
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import flatten
from monitoring_pipeline.traces.redaction import Redactor
from monitoring_pipeline.windows import EPOCH, Window, floor_hour, from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, Trace
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

WORKER_ROWS = 50  # traces that a worker has as Python objects at a time
MICROSECOND = timedelta(microseconds=1)

# A trace as it goes into the archive or, where `reason` is set, into the quarantine.
QUARANTINE = [QUARANTINED_TRACES.schema.field(name) for name in ("reason", "raw")]
ARCHIVED = pa.schema([column for column in AGENT_TRACES.schema if column.name != "date"])
WORKED = pa.schema([*ARCHIVED, *QUARANTINE])
UNREADABLE = [column.name for column in QUARANTINED_TRACES.schema if column.name != "date"]


def open_table(spark: SparkResource, location: str) -> DataFrame:
    """The table (catalog.schema.name, a folder or an address) as a DataFrame.

    Raises:
        TrackingError: it is not there, or cannot be read.
    """
    from pyspark.errors import PySparkException

    if in_catalog(location) and spark.is_embedded:
        raise TrackingError(
            f"the table {location} is in a catalog, and the embedded engine has none; "
            "set [spark] remote, or [archive] location to a folder"
        )
    try:
        if in_catalog(location):
            table = spark.session.read.table(location)
        else:
            table = spark.session.read.format("delta").load(for_sail(location) if spark.is_embedded else location)
        _ = table.schema  # it is only now that the engine looks for it
    except PySparkException as error:
        raise TrackingError(
            f"cannot read the table {without_password(location)}: {first_line(error)}; check [archive] location"
        ) from error
    return table


def needed(schema: StructType, paths: tuple[str, ...], location: str) -> str:
    """The first of `paths` (of columns, and with dots of fields within) that a table at `location` has.

    Raises:
        TrackingError: it has none of them.
    """
    found = present(schema, paths)
    if found is None:
        raise TrackingError(
            f"the table {without_password(location)} has no column {' or '.join(paths)}; "
            "check [archive] source and location"
        )
    return found


def present(schema: StructType, paths: tuple[str, ...]) -> str | None:
    """The first of `paths` that is in the schema, looking into arrays too; None without any."""
    return next((path for path in paths if type_of(schema, path) is not None), None)


def type_of(schema: StructType, path: str) -> Any:
    """The Spark type at the path; None where there is none."""
    from pyspark.sql.types import ArrayType, StructType

    found: Any = schema
    for name in path.split("."):
        found = found.elementType if isinstance(found, ArrayType) else found
        if not isinstance(found, StructType) or name not in found.names:
            return None
        found = found[name].dataType
    return found


def microseconds(moment: datetime) -> int:
    """The time in microseconds since 1970."""
    return (moment - EPOCH) // MICROSECOND


def worked(
    traces: DataFrame,
    build: Callable[[dict[str, Any]], Trace],
    experiment_names: dict[str, str],
    experiment_id: str | None,
) -> DataFrame:
    """Rows of `agent_traces`, without `date` and with `reason` and `raw`: set where `build` or `flatten` failed.

    Rows of traces that name no experiment get `experiment_id`. `build` goes to the engine's workers, which have this
    package too; times reach it as whole numbers, in the unit of the column's type.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    work = functools.partial(
        _work,
        build=build,
        experiment_names=experiment_names,
        experiment_id=experiment_id,
        archived_at=datetime.now(UTC),
    )
    return traces.mapInArrow(work, from_arrow_schema(WORKED))


def archive_frame(
    lake: LakeResource,
    window: Window,
    frame: Callable[[Window], DataFrame],
    on_progress: Callable[[int], None] = lambda read: None,
    redactor: Redactor | None = None,
) -> ArchiveCounts:
    """Merge what `frame` gives (see `worked`) of `window` into the archive, or into the quarantine.

    Into a catalog day by day, and the traces stay in the engine; else hour by hour, so that the memory needed is that
    of one hour. `on_progress` is told the number of traces so far. `redactor` takes out of all of them, on the engine's
    workers, what is not to be kept.
    """
    counts = ArchiveCounts()
    deleted = deleted_digests(lake, window)
    seen: list[pa.Table] = []
    quarantine: dict[str, dict[str, Any]] = {}
    parts, merged = (window.by_day(), _merged_in_engine) if lake.is_in_catalog else (window.by_hour(), _merged_here)
    for part in parts:
        rows = frame(part)
        if redactor:
            rows = redacted_rows(rows, redactor)
        unreadable, places = merged(lake, part, rows, deleted, counts)
        seen.append(places)
        quarantine.update({row["trace_id"]: row for row in unreadable.select(UNREADABLE).to_pylist()})
        on_progress(counts.read)
    counts.quarantined = update_quarantine(lake, window, quarantine)
    # A table is not asked for single traces: one that has moved is followed when its new hour is archived.
    counts.moved = follow_moved(lake, window, pa.concat_tables(seen), lambda hours: {})
    return counts


def _merged_here(
    lake: LakeResource, part: Window, frame: DataFrame, deleted: frozenset[str], counts: ArchiveCounts
) -> tuple[pa.Table, pa.Table]:
    """Write the traces but those `deleted` on request, and count them.

    Returns those that cannot be archived, and the places (see `places_of`) of the others.
    """
    rows = frame.toArrow()
    counts.read += rows.num_rows
    if deleted:
        kept = pa.array(
            [trace_digest(trace_id) not in deleted for trace_id in rows["trace_id"].to_pylist()], pa.bool_()
        )
        counts.deleted += rows.num_rows - rows.filter(kept).num_rows
        rows = rows.filter(kept)
    failed = pc.is_valid(rows["reason"])
    readable = rows.filter(pc.invert(failed)).select(ARCHIVED.names)
    counts.redactions += removed(readable)
    counts.written += lake.upsert(AGENT_TRACES, readable, part)
    return rows.filter(failed), places_of(readable)


def _merged_in_engine(
    lake: LakeResource, part: Window, frame: DataFrame, deleted: frozenset[str], counts: ArchiveCounts
) -> tuple[pa.Table, pa.Table]:
    """As `_merged_here`."""
    from pyspark.sql import functions as F

    with _computed_once(frame):
        is_kept = ~F.sha2("trace_id", 256).isin(*deleted) if deleted else F.lit(True)
        read, kept = frame.count(), frame.where(is_kept)
        failed = kept["reason"].isNotNull()
        counts.read += read
        counts.deleted += read - kept.count() if deleted else 0
        counts.redactions += removed(kept.where("redactions IS NOT NULL").select("redactions").toArrow())
        counts.written += lake.upsert(AGENT_TRACES, kept.where(~failed).select(*ARCHIVED.names), part)
        return kept.where(failed).toArrow(), places_of(kept.where(~failed).select(*PLACE).toArrow())


def redacted_rows(rows: DataFrame, redactor: Redactor) -> DataFrame:
    """The rows of `worked` without what is not to be kept; those for which that fails go to the quarantine."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return rows.mapInArrow(functools.partial(_redacted, redactor=redactor), from_arrow_schema(WORKED))


def _redacted(batches: Iterator[pa.RecordBatch], redactor: Redactor) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for first in range(0, batch.num_rows, WORKER_ROWS):
            rows = pa.Table.from_batches([batch.slice(first, WORKER_ROWS)]).to_pylist(maps_as_pydicts="lossy")
            yield from pa.Table.from_pylist([_redacted_row(row, redactor) for row in rows], schema=WORKED).to_batches()


def _redacted_row(row: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    if row["reason"] is not None:
        return {**row, "reason": redactor.text(row["reason"]), "raw": redactor.raw(row["raw"])}
    try:
        return redactor.row(row)
    except Exception as error:  # noqa: BLE001 - malformed content may raise anything; its text is not known to be clean
        known = {name: row[name] for name in ("trace_id", "created_at", "trace_hour")}
        return {**known, "reason": f"it cannot be redacted: {type(error).__name__}", "raw": ""}


@contextmanager
def _computed_once(frame: DataFrame) -> Iterator[None]:
    """Within the block the engine keeps the rows, where it can: Databricks' serverless compute computes them again."""
    from pyspark.errors import PySparkException

    with suppress(PySparkException):
        frame.persist()
    try:
        yield
    finally:
        with suppress(PySparkException):
            frame.unpersist()


def _work(
    batches: Iterator[pa.RecordBatch],
    build: Callable[[dict[str, Any]], Trace],
    experiment_names: dict[str, str],
    experiment_id: str | None,
    archived_at: datetime,
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        plain = pa.Table.from_batches([batch])
        plain = plain.cast(pa.schema([(column.name, _timeless(column.type)) for column in plain.schema]))
        for first in range(0, plain.num_rows, WORKER_ROWS):
            sources = plain.slice(first, WORKER_ROWS).to_pylist(maps_as_pydicts="lossy")
            rows = [_row(source, build, experiment_names, experiment_id, archived_at) for source in sources]
            try:
                table = pa.Table.from_pylist(rows, schema=WORKED)
            except Exception:  # noqa: BLE001 - Arrow refuses a lone surrogate and the like, whose row is then sought
                table = pa.concat_tables(
                    [_alone(source, row, archived_at) for source, row in zip(sources, rows, strict=True)]
                )
            yield from table.to_batches()


def _row(
    source: dict[str, Any],
    build: Callable[[dict[str, Any]], Trace],
    experiment_names: dict[str, str],
    experiment_id: str | None,
    archived_at: datetime,
) -> dict[str, Any]:
    try:
        row = flatten(build(source), archived_at)
    except Exception as error:  # noqa: BLE001 - malformed content may raise anything; it is kept aside with the reason
        return _quarantined(source, error, archived_at)
    row["experiment_id"] = row["experiment_id"] or experiment_id
    row["experiment_name"] = experiment_names.get(row["experiment_id"] or "")
    return row


def _alone(source: dict[str, Any], row: dict[str, Any], archived_at: datetime) -> pa.Table:
    try:
        return pa.Table.from_pylist([row], schema=WORKED)
    except Exception as error:  # noqa: BLE001 - as above
        return pa.Table.from_pylist([_quarantined(source, error, archived_at)], schema=WORKED)


def _quarantined(source: dict[str, Any], error: Exception, archived_at: datetime) -> dict[str, Any]:
    cause = error.__cause__ or error  # MLflow's own says only that there is one
    return {
        "trace_id": source["trace_id"],
        "created_at": archived_at,
        "trace_hour": floor_hour(from_milliseconds(milliseconds(source["started"]))),
        "reason": encodable(f"{type(cause).__name__}: {cause}"),
        "raw": encodable(json.dumps(source, default=repr)),
    }


def _timeless(kind: pa.DataType) -> pa.DataType:
    """The type with whole numbers for times: content may hold times that Python's datetime does not know."""
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_timeless(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _timeless(field.type)) for field in kind])
    return kind


# ---- MLflow's entities ----


def nanoseconds(time: int) -> int:
    """A time since 1970, whose unit (ms, us or ns) its size tells: they are distinct from 1973 to 5138."""
    if time < 10**14:
        return time * 10**6
    return time * 1000 if time < 10**17 else time


def milliseconds(time: int) -> int:
    """As `nanoseconds`, in whole milliseconds."""
    return nanoseconds(time) // 10**6


def value_of(text: str | None) -> Any:
    """The value of a text that may or may not be JSON."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def span_of(
    trace_id: str,
    span_id: str,
    parent_id: str | None,
    name: str | None,
    start_ns: int | None,
    end_ns: int | None,
    status_code: str | None,
    status_message: str | None,
    attributes: dict[str, str],
    events: list[dict[str, Any]],
    links: list[dict[str, Any]],
) -> Span:
    """MLflow's span; ids are hexadecimal, `attributes` JSON.

    Raises:
        MlflowException: what is given is no span.
    """
    from mlflow.entities import Span
    from mlflow.tracing.utils import parse_trace_id_v4

    otel_trace_id = (parse_trace_id_v4(trace_id)[1] or "").removeprefix("tr-")
    code = (status_code or "UNSET").upper().removeprefix("STATUS_CODE_")
    return Span.from_dict(
        {
            "trace_id": _base64(otel_trace_id),
            "span_id": _base64(span_id),
            "parent_span_id": _base64(parent_id) if parent_id else None,
            "name": name,
            "start_time_unix_nano": start_ns,
            "end_time_unix_nano": end_ns,
            "status": {"code": f"STATUS_CODE_{code}", "message": status_message or ""},
            "attributes": {**attributes, "mlflow.traceRequestId": json.dumps(trace_id)},
            "events": events,
            "links": links,
        }
    )


def assessment_of(
    is_expectation: bool,
    value: Any,
    trace_id: str,
    assessment_id: str | None,
    name: str,
    source_type: str | None,
    source_id: str | None,
    rationale: str | None,
    error_code: str | None,
    error_message: str | None,
    stack_trace: str | None,
    span_id: str | None,
    created_ms: int,
    updated_ms: int,
    metadata: dict[str, str],
    overrides: str | None,
    is_valid: bool,
) -> Assessment:
    """MLflow's expectation or feedback."""
    from mlflow.entities import AssessmentError, AssessmentSource, Expectation, Feedback

    common: dict[str, Any] = {
        "name": name,
        "source": AssessmentSource(source_type or "SOURCE_TYPE_UNSPECIFIED", source_id),
        "trace_id": trace_id,
        "metadata": metadata or None,
        "span_id": span_id,
        "create_time_ms": created_ms,
        "last_update_time_ms": updated_ms,
    }
    if is_expectation:
        assessment: Assessment = Expectation(value=value, **common)
    else:
        failed = error_code is not None or error_message is not None
        error = AssessmentError(error_code or "", error_message, stack_trace) if failed else None
        assessment = Feedback(value=value, error=error, **common)
    assessment.assessment_id = assessment_id
    assessment.rationale = rationale
    assessment.overrides = overrides
    assessment.valid = is_valid
    return assessment


def in_order(spans: list[Span]) -> list[Span]:
    """The spans as MLflow orders a trace's: those without a parent first, then by start and id."""
    return sorted(spans, key=lambda span: (span.parent_id is not None, span.start_time_ns, span.span_id))


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
