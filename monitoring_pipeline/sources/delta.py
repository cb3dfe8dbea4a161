"""Traces from the Delta table that Databricks archives an experiment's traces in.

Databricks publishes no schema for it, and tables in use differ: `TRACE`, `SPAN`, `EVENT` and `ASSESSMENT` say what is
understood. Values of attributes and assessments may be JSON or plain text, which is taken for JSON where it could be.

What such a table cannot hold, so that the archive differs from one that was read from MLflow:

- nanoseconds of spans, where their times are of type TIMESTAMP (microseconds);
- links of spans and, in the schema of MLflow 3.2, `overrides` and `valid` of assessments: all count as valid;
- a row without a time of its request belongs to no hour, and is not read.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.resources.rows import timestamp
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.sources.entities import assessment_of, in_order, milliseconds, nanoseconds, span_of, value_of
from monitoring_pipeline.sources.tables import microseconds, needed, open_table, present, type_of, worked
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, Trace
    from mlflow.entities.trace_location import TraceLocation
    from pyspark.sql import Column, DataFrame

Spellings = dict[str, tuple[str, ...]]  # what MLflow calls it -> what tables call it; the first that has a value counts

TRACE: Spellings = {
    "trace_id": ("trace_id", "request_id"),
    "request_time": ("request_time", "timestamp_ms", "timestamp"),
    "state": ("state", "status"),
    "execution_duration": ("execution_duration_ms", "execution_duration", "execution_time_ms"),
    "request_preview": ("request_preview", "request"),
    "response_preview": ("response_preview", "response"),
    "client_request_id": ("client_request_id",),
    "trace_metadata": ("trace_metadata", "request_metadata"),
    "tags": ("tags",),
    "trace_location": ("trace_location",),
    "experiment_id": ("trace_location.mlflow_experiment.experiment_id", "experiment_id"),
    "spans": ("spans",),
    "assessments": ("assessments",),
}
SPAN: Spellings = {
    "span_id": ("span_id",),
    "parent_id": ("parent_id", "parent_span_id"),
    "name": ("name",),
    "start_time": ("start_time", "start_time_ns", "start_time_unix_nano"),
    "end_time": ("end_time", "end_time_ns", "end_time_unix_nano"),
    "status_code": ("status_code", "status.status_code", "status.code", "status"),
    "status_message": ("status_message", "status.message", "status.description"),
    "attributes": ("attributes",),
    "events": ("events",),
    "links": ("links",),
}
EVENT: Spellings = {
    "name": ("name",),
    "timestamp": ("timestamp", "time_unix_nano", "timestamp_ns"),
    "attributes": ("attributes",),
}
ASSESSMENT: Spellings = {
    "assessment_id": ("assessment_id",),
    "name": ("assessment_name", "name"),
    "source_type": ("source.source_type",),
    "source_id": ("source.source_id",),
    "create_time": ("create_time", "create_time_ms"),
    "last_update_time": ("last_update_time", "last_update_time_ms"),
    "expectation": ("expectation.value", "expectation.serialized_value.value"),
    "feedback": ("feedback.value",),
    "error_code": ("feedback.error.error_code", "error.error_code"),
    "error_message": ("feedback.error.error_message", "error.error_message"),
    "stack_trace": ("feedback.error.stack_trace", "error.stack_trace"),
    "rationale": ("rationale",),
    "metadata": ("metadata",),
    "span_id": ("span_id",),
    "overrides": ("overrides",),
    "valid": ("valid",),
}


def archived_traces(
    spark: SparkResource, location: str, experiment_names: dict[str, str], limited: bool, window: Window
) -> DataFrame:
    """The traces of the table at `location` that start in `window`, as `in_engine.worked` gives them.

    With `limited`, those of the experiments in `experiment_names` (id -> name) and those that name none; the latter are
    taken to be of the one experiment where there is only one.

    Raises:
        TrackingError: the table is not there, or lacks a column.
    """
    rows = rows_within(spark, location, experiment_names, limited, window)
    trace_id, requested, state, _ = (
        needed(rows.schema, TRACE[name], location) for name in ("trace_id", "request_time", "state", "spans")
    )
    only = next(iter(experiment_names)) if limited and len(experiment_names) == 1 else None
    latest = _latest(_readable(rows), trace_id, requested, state)
    return worked(latest, functools.partial(build_trace, experiment_id=only), experiment_names, only)


def rows_within(
    spark: SparkResource, location: str, experiment_names: dict[str, str], limited: bool, window: Window
) -> DataFrame:
    """The rows of the table whose request is in `window`, as they stand; arguments as of `archived_traces`.

    Raises:
        TrackingError: the table is not there, or lacks the time of a request.
    """
    table = open_table(spark, location)
    rows = table.where(_within(table, needed(table.schema, TRACE["request_time"], location), window))
    if limited and (experiment := present(table.schema, TRACE["experiment_id"])):
        rows = rows.where(rows[experiment].isNull() | rows[experiment].isin(*experiment_names))
    return rows


def _within(table: DataFrame, requested: str, window: Window) -> Column:
    from pyspark.sql.types import LongType

    time = table[requested]
    if not isinstance(type_of(table.schema, requested), LongType):
        return (time >= timestamp(window.start)) & (time < timestamp(window.end))
    start_us, end_us = microseconds(window.start), microseconds(window.end)
    in_ms = (time >= -(-start_us // 1000)) & (time < -(-end_us // 1000))
    in_ns = (time >= start_us * 1000) & (time < end_us * 1000)
    return in_ms | in_ns | ((time >= start_us) & (time < end_us))


def _readable(rows: DataFrame) -> DataFrame:
    """The rows with JSON for columns of type VARIANT, which Arrow does not have."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import VariantType

    variants = [field.name for field in rows.schema if isinstance(field.dataType, VariantType)]
    return rows.withColumns({name: F.to_json(name) for name in variants}) if variants else rows


def _latest(rows: DataFrame, trace_id: str, requested: str, state: str) -> DataFrame:
    """One row a trace: the table is appended to, and a trace that changed after it was archived is there again.

    Rows hold no time of their writing, so what they say decides: a finished trace is later than one in progress, then
    the latest change of an assessment counts, then the number of assessments, of spans and of tags.
    """
    from pyspark.sql import Window as Rows
    from pyspark.sql import functions as F
    from pyspark.sql.types import StringType

    def size(name: str) -> list[Column]:
        path = present(rows.schema, TRACE[name])
        if path is None:
            return []
        is_text = isinstance(type_of(rows.schema, path), StringType)
        return [(F.length(path) if is_text else F.size(path)).desc()]

    changed = present(rows.schema, tuple(f"assessments.{name}" for name in ASSESSMENT["last_update_time"]))
    by_content = [
        (F.col(state) == "IN_PROGRESS").asc(),
        *([F.array_max(changed).desc_nulls_last()] if changed else []),
        *size("assessments"),
        *size("spans"),
        *size("tags"),
        F.to_json(F.struct(*[name for name in rows.columns if name not in ("spans", "assessments")])).desc(),
    ]
    identified = rows.withColumn("trace_id", F.coalesce(F.col(trace_id), F.lit("")))
    ranked = identified.withColumn("rank", F.row_number().over(Rows.partitionBy("trace_id").orderBy(*by_content)))
    return ranked.where(F.col("rank") == 1).drop("rank").withColumn("started", F.col(requested))


def build_trace(row: dict[str, Any], experiment_id: str | None) -> Trace:
    """The trace of a row; `experiment_id` where it names none.

    Raises:
        Exception: whatever a malformed row makes this raise; it goes into the quarantine.
    """
    from mlflow.entities import Trace, TraceData, TraceInfo, TraceState

    trace = _respelled(row, TRACE)
    if not trace["trace_id"]:
        raise ValueError("it has no trace_id")
    duration_ms = trace["execution_duration"]
    info = TraceInfo(
        trace_id=trace["trace_id"],
        trace_location=_location(trace, experiment_id),
        request_time=milliseconds(trace["request_time"]),
        state=TraceState(trace["state"]),
        request_preview=trace["request_preview"],
        response_preview=trace["response_preview"],
        client_request_id=trace["client_request_id"],
        execution_duration=None if duration_ms is None else round(duration_ms),
        trace_metadata=_mapping(trace["trace_metadata"]),
        tags=_mapping(trace["tags"]),
        assessments=[_assessment(given, trace["trace_id"]) for given in _parsed(trace["assessments"]) or []],
    )
    spans = [_span(given, trace["trace_id"]) for given in _parsed(trace["spans"]) or []]
    return Trace(info, TraceData(in_order(spans)))


def _location(trace: dict[str, Any], experiment_id: str | None) -> TraceLocation:
    from mlflow.entities.trace_location import TraceLocation, TraceLocationType

    given = {key: value for key, value in (trace["trace_location"] or {}).items() if value}
    if len(given) > 1:  # the type and what it is
        return TraceLocation.from_dict(given)
    if experiment_id := trace["experiment_id"] or experiment_id:
        return TraceLocation.from_experiment_id(experiment_id)
    return TraceLocation(TraceLocationType.TRACE_LOCATION_TYPE_UNSPECIFIED)


def _span(row: dict[str, Any], trace_id: str) -> Span:
    span = _respelled(row, SPAN)
    return span_of(
        trace_id=trace_id,
        span_id=span["span_id"],
        parent_id=span["parent_id"],
        name=span["name"],
        start_ns=nanoseconds(span["start_time"]),
        end_ns=nanoseconds(span["end_time"]) if span["end_time"] else None,
        status_code=span["status_code"],
        status_message=span["status_message"],
        attributes={key: _as_json(value) for key, value in (_parsed(span["attributes"]) or {}).items()},
        events=[_event(event) for event in _parsed(span["events"]) or []],
        links=_parsed(span["links"]) or [],
    )


def _event(row: dict[str, Any]) -> dict[str, Any]:
    event = _respelled(row, EVENT)
    return {
        "name": event["name"],
        "time_unix_nano": nanoseconds(event["timestamp"]),
        "attributes": {
            key: value_of(value) if isinstance(value, str) else value
            for key, value in (_parsed(event["attributes"]) or {}).items()
        },
    }


def _assessment(row: dict[str, Any], trace_id: str) -> Assessment:
    given = _respelled(row, ASSESSMENT)
    is_expectation = given["expectation"] is not None
    return assessment_of(
        is_expectation=is_expectation,
        value=value_of(given["expectation"] if is_expectation else given["feedback"]),
        trace_id=trace_id,
        assessment_id=given["assessment_id"],
        name=given["name"],
        source_type=given["source_type"],
        source_id=given["source_id"],
        rationale=given["rationale"],
        error_code=given["error_code"],
        error_message=given["error_message"],
        stack_trace=given["stack_trace"],
        span_id=given["span_id"],
        created_ms=milliseconds(given["create_time"]),
        updated_ms=milliseconds(given["last_update_time"] or given["create_time"]),
        metadata=_mapping(given["metadata"]),
        overrides=given["overrides"],
        is_valid=given["valid"] is not False,
    )


def _as_json(value: Any) -> str:
    """The value as MLflow keeps it in a span's attributes: a text that is JSON stays as it is."""
    from mlflow.tracing.utils import dump_span_attribute_value

    if isinstance(value, str) and value_of(value) is not value:
        return value
    return dump_span_attribute_value(value)


def _respelled(row: dict[str, Any], spellings: Spellings) -> dict[str, Any]:
    return {
        name: next((value for path in paths if (value := _at(row, path)) is not None), None)
        for name, paths in spellings.items()
    }


def _at(row: Any, path: str) -> Any:
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _parsed(given: Any) -> Any:
    """A value that stands in the table as such or, in a column of text or VARIANT, as JSON."""
    return json.loads(given) if isinstance(given, str) else given


def _mapping(given: Any) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in (_parsed(given) or {}).items()
    }
