"""Functions to open tables of traces, flatten their rows on the engine's workers, and count them by hour."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from monitoring_pipeline.errors import TrackingError, first_line
from monitoring_pipeline.resources.delta_folders import for_sail
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.settings import in_catalog, without_password
from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.sources.entities import milliseconds
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import encodable, flatten
from monitoring_pipeline.windows import EPOCH, HOUR, floor_hour, from_milliseconds, to_microseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

WORKER_ROWS = 50  # traces that a worker holds as Python objects at a time
HOUR_US = to_microseconds(EPOCH + HOUR)

# A flattened trace goes into the archive or, if `reason` is set, into quarantine.
ARCHIVED = AGENT_TRACES.columns
QUARANTINE = [QUARANTINED_TRACES.schema.field(name) for name in ("reason", "raw")]
FLATTENED = pa.schema([*ARCHIVED, *QUARANTINE])


def open_table(spark: SparkResource, location: str) -> DataFrame:
    """Return the table (catalog.schema.name, a folder or an address) as a DataFrame.

    Raises:
        TrackingError: the table does not exist or cannot be read.
    """
    from pyspark.errors import PySparkException

    if in_catalog(location) and spark.is_embedded:
        raise TrackingError(
            f"the table {location} is in a catalog, which the embedded engine does not support; "
            "set [spark] remote, or [archive] location to a folder"
        )
    try:
        if in_catalog(location):
            table = spark.session.read.table(location)
        else:
            table = spark.session.read.format("delta").load(for_sail(location) if spark.is_embedded else location)
        _ = table.schema  # the engine resolves the table only when its schema is read
    except PySparkException as error:
        raise TrackingError(
            f"cannot read the table {without_password(location)}: {first_line(error)}; check [archive] location"
        ) from error
    return table


def needed(schema: StructType, paths: tuple[str, ...], location: str) -> str:
    """Return the first of `paths` that exists in the table at `location`; a path is a column or a dotted field.

    Raises:
        TrackingError: the table has none of them.
    """
    found = present(schema, paths)
    if found is None:
        raise TrackingError(
            f"the table {without_password(location)} has no column {' or '.join(paths)}; "
            "check [archive] source and location"
        )
    return found


def present(schema: StructType, paths: tuple[str, ...]) -> str | None:
    """Return the first of `paths` that exists in the schema, or None; paths may lead into arrays."""
    return next((path for path in paths if type_of(schema, path) is not None), None)


def type_of(schema: StructType, path: str) -> Any:
    """Return the Spark type at the path, or None if the schema lacks it."""
    from pyspark.sql.types import ArrayType, StructType

    found: Any = schema
    for name in path.split("."):
        found = found.elementType if isinstance(found, ArrayType) else found
        if not isinstance(found, StructType) or name not in found.names:
            return None
        found = found[name].dataType
    return found


def flattened(
    traces: DataFrame,
    build: Callable[[dict[str, Any]], Trace],
    experiment_names: dict[str, str],
    experiment_id: str | None,
) -> DataFrame:
    """Return the traces with the columns of `FLATTENED`; `reason` and `raw` are set if `build` or `flatten` failed.

    `traces` has one row per trace: `trace_id`, `started` (a timestamp or a number, see `entities.nanoseconds`) and the
    columns that `build` needs. `build` runs on the engine's workers, which need this package too; it receives times as
    whole numbers in the unit of the column's type. Traces without an experiment get `experiment_id`.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    flatten_batches = functools.partial(
        _flatten_batches,
        build=build,
        experiment_names=experiment_names,
        experiment_id=experiment_id,
        archived_at=datetime.now(UTC),
    )
    return traces.mapInArrow(flatten_batches, from_arrow_schema(FLATTENED))


def _flatten_batches(
    batches: Iterator[pa.RecordBatch],
    build: Callable[[dict[str, Any]], Trace],
    experiment_names: dict[str, str],
    experiment_id: str | None,
    archived_at: datetime,
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        plain = pa.Table.from_batches([batch])
        plain = plain.cast(pa.schema([(column.name, _with_whole_numbers(column.type)) for column in plain.schema]))
        for first in range(0, plain.num_rows, WORKER_ROWS):
            sources = plain.slice(first, WORKER_ROWS).to_pylist(maps_as_pydicts="lossy")
            rows = [_flat_row(source, build, experiment_names, experiment_id, archived_at) for source in sources]
            try:
                table = pa.Table.from_pylist(rows, schema=FLATTENED)
            except Exception:  # noqa: BLE001 - Arrow rejects e.g. lone surrogates; each row is tried by itself
                table = pa.concat_tables(
                    [_single_row(source, row, archived_at) for source, row in zip(sources, rows, strict=True)]
                )
            yield from table.to_batches()


def _flat_row(
    source: dict[str, Any],
    build: Callable[[dict[str, Any]], Trace],
    experiment_names: dict[str, str],
    experiment_id: str | None,
    archived_at: datetime,
) -> dict[str, Any]:
    try:
        row = flatten(build(source), archived_at)
    except Exception as error:  # noqa: BLE001 - malformed content raises any error; the quarantine stores it
        return _quarantined(source, error, archived_at)
    row["experiment_id"] = row["experiment_id"] or experiment_id
    row["experiment_name"] = experiment_names.get(row["experiment_id"] or "")
    return row


def _single_row(source: dict[str, Any], row: dict[str, Any], archived_at: datetime) -> pa.Table:
    try:
        return pa.Table.from_pylist([row], schema=FLATTENED)
    except Exception as error:  # noqa: BLE001 - as in _flatten_batches
        return pa.Table.from_pylist([_quarantined(source, error, archived_at)], schema=FLATTENED)


def _quarantined(source: dict[str, Any], error: Exception, archived_at: datetime) -> dict[str, Any]:
    cause = error.__cause__ or error  # MLflow's error message omits its cause
    return {
        "trace_id": source["trace_id"],
        "created_at": archived_at,
        "trace_hour": floor_hour(from_milliseconds(milliseconds(source["started"]))),
        "reason": encodable(f"{type(cause).__name__}: {cause}"),
        "raw": encodable(json.dumps(source, default=repr)),
    }


def _with_whole_numbers(kind: pa.DataType) -> pa.DataType:
    """The type with integers in place of timestamps: content may hold times outside the range of Python's datetime."""
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_with_whole_numbers(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _with_whole_numbers(field.type)) for field in kind])
    return kind


def by_hour(traces: DataFrame) -> dict[datetime, HourCounts]:
    """Return the counts of each hour; the mark is the number of rows.

    `traces` has one row per trace: `number` (see `hour_number`), `in_progress` (0 or 1), `assessments` and `rows`.
    """
    from pyspark.sql import functions as F

    hours = traces.groupBy("number").agg(
        F.count("*").alias("traces"),
        F.sum("in_progress").alias("in_progress"),
        F.sum("assessments").alias("assessments"),
        F.sum("rows").alias("rows"),
    )
    return {
        EPOCH + row["number"] * HOUR: HourCounts(
            row["traces"], row["in_progress"] or 0, row["assessments"], f"rows {row['rows']}"
        )
        for row in hours.toArrow().to_pylist()
    }


def hour_number(us: Column) -> Column:
    """Return the number of hours since 1970 of a time in microseconds."""
    return ((us - us % HOUR_US) / HOUR_US).cast("long")


def ns_to_us(ns: Column) -> Column:
    """Convert nanoseconds to whole microseconds exactly; dividing the large number directly would round."""
    return ((ns - ns % 1000) / 1000).cast("long")
