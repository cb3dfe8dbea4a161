"""Tables of traces, read and flattened by the engine."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from monitoring_pipeline.errors import TrackingError, first_line
from monitoring_pipeline.resources.delta_folders import for_sail
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.settings import in_catalog, without_password
from monitoring_pipeline.sources.entities import milliseconds
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import encodable, flatten
from monitoring_pipeline.windows import EPOCH, floor_hour, from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType


WORKER_ROWS = 50  # traces that a worker has as Python objects at a time


MICROSECOND = timedelta(microseconds=1)


# A trace as it goes into the archive or, where `reason` is set, into the quarantine.
QUARANTINE = [QUARANTINED_TRACES.schema.field(name) for name in ("reason", "raw")]


ARCHIVED = pa.schema([column for column in AGENT_TRACES.schema if column.name != "date"])


WORKED = pa.schema([*ARCHIVED, *QUARANTINE])


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
