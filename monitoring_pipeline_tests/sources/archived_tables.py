"""The tables in which Databricks stores traces, written from MLflow traces.

Databricks' own client (databricks-agents) builds the rows of the OpenTelemetry tables; it also writes those of
version 2.

    python -m monitoring_pipeline_tests.sources.archived_tables SPARK_REMOTE TRACKING_URI HOURS LAKE

on a cluster writes the tables spark_catalog.default.recorded_otel_… from the traces of the first HOURS recorded hours,
and archives them into the folder LAKE. It needs its own process because a process has one Spark session, and tests use
the embedded one.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import write_deltalake
from mlflow.entities import Assessment, Span, Trace

from monitoring_pipeline_tests.sources.stores import traces_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TIME = pa.timestamp("us", tz="UTC")
MAP = pa.map_(pa.string(), pa.string())
COUNT = pa.int32()

# Archived traces, as in the view of MLflow 3.2.
ARCHIVED_SPAN = pa.struct(
    [
        *((name, pa.string()) for name in ("span_id", "trace_id", "parent_id")),
        ("start_time", TIME),
        ("end_time", TIME),
        *((name, pa.string()) for name in ("status_code", "status_message", "name")),
        ("attributes", MAP),
        ("events", pa.list_(pa.struct([("name", pa.string()), ("timestamp", TIME), ("attributes", MAP)]))),
    ]
)
ARCHIVED_ASSESSMENT = pa.struct(
    [
        *((name, pa.string()) for name in ("assessment_id", "trace_id", "assessment_name")),
        ("source", pa.struct([("source_id", pa.string()), ("source_type", pa.string())])),
        ("create_time", TIME),
        ("last_update_time", TIME),
        ("expectation", pa.struct([("value", pa.string())])),
        (
            "feedback",
            pa.struct(
                [
                    ("value", pa.string()),
                    ("error", pa.struct([("error_code", pa.string()), ("error_message", pa.string())])),
                ]
            ),
        ),
        ("rationale", pa.string()),
        ("metadata", MAP),
        ("span_id", pa.string()),
    ]
)
ARCHIVED_TRACE = pa.schema(
    [
        ("trace_id", pa.string()),
        ("client_request_id", pa.string()),
        ("request_time", TIME),
        ("state", pa.string()),
        ("execution_duration_ms", pa.float64()),
        ("request", pa.string()),
        ("response", pa.string()),
        ("trace_metadata", MAP),
        ("tags", MAP),
        (
            "trace_location",
            pa.struct(
                [
                    ("type", pa.string()),
                    ("mlflow_experiment", pa.struct([("experiment_id", pa.string())])),
                    ("inference_table", pa.struct([("full_table_name", pa.string())])),
                ]
            ),
        ),
        ("assessments", pa.list_(ARCHIVED_ASSESSMENT)),
        ("spans", pa.list_(ARCHIVED_SPAN)),
    ]
)

ATTRIBUTES = pa.struct([("attributes", MAP), ("dropped_attributes_count", COUNT)])
OTEL_SPAN_V1 = pa.schema(
    [
        *((name, pa.string()) for name in ("trace_id", "span_id", "trace_state", "parent_span_id")),
        ("flags", COUNT),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("start_time_unix_nano", pa.int64()),
        ("end_time_unix_nano", pa.int64()),
        ("attributes", MAP),
        ("dropped_attributes_count", COUNT),
        (
            "events",
            pa.list_(
                pa.struct(
                    [
                        ("time_unix_nano", pa.int64()),
                        ("name", pa.string()),
                        ("attributes", MAP),
                        ("dropped_attributes_count", COUNT),
                    ]
                )
            ),
        ),
        ("dropped_events_count", COUNT),
        (
            "links",
            pa.list_(
                pa.struct(
                    [
                        *((name, pa.string()) for name in ("trace_id", "span_id", "trace_state")),
                        ("attributes", MAP),
                        ("dropped_attributes_count", COUNT),
                        ("flags", COUNT),
                    ]
                )
            ),
        ),
        ("dropped_links_count", COUNT),
        ("status", pa.struct([("message", pa.string()), ("code", pa.string())])),
        ("resource", ATTRIBUTES),
        ("resource_schema_url", pa.string()),
        (
            "instrumentation_scope",
            pa.struct([("name", pa.string()), ("version", pa.string()), *ATTRIBUTES]),
        ),
        ("span_schema_url", pa.string()),
    ]
)
OTEL_ANNOTATION = pa.schema(
    [
        *(
            (name, pa.string())
            for name in (
                *("annotation_id", "target_type", "target_id", "annotation_type"),
                *("name", "value", "comment", "metadata"),
            )
        ),
        *(
            field
            for event in ("created", "updated", "deleted")
            for field in ((f"{event}_at", TIME), (f"{event}_by", pa.string()))
        ),
        ("_change_type", pa.string()),
    ]
)


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Append the rows to the Delta table in the folder."""
    write_deltalake(path, pa.Table.from_pylist(rows, schema=schema), mode="append")


# ---- archived traces ----


def archived_rows(traces: list[Trace]) -> list[dict[str, Any]]:
    """The traces as rows of ARCHIVED_TRACE."""
    return [_archived_row(trace) for trace in traces]


def _archived_row(trace: Trace) -> dict[str, Any]:
    info = trace.info
    return {
        "trace_id": info.trace_id,
        "client_request_id": info.client_request_id,
        "request_time": _time(info.request_time * 10**6),
        "state": info.state.value,
        "execution_duration_ms": info.execution_duration,
        "request": info.request_preview,
        "response": info.response_preview,
        "trace_metadata": info.trace_metadata,
        "tags": info.tags,
        "trace_location": info.trace_location.to_dict(),
        "assessments": [_archived_assessment(assessment) for assessment in info.assessments],
        "spans": [_archived_span(span) for span in trace.data.spans],
    }


def _archived_span(span: Span) -> dict[str, Any]:
    return {
        "span_id": span.span_id,
        "trace_id": span._trace_id,
        "parent_id": span.parent_id,
        "start_time": _time(span.start_time_ns),
        "end_time": _time(span.end_time_ns) if span.end_time_ns else None,
        "status_code": span.status.status_code.value,
        "status_message": span.status.description,
        "name": span.name,
        "attributes": span.to_dict()["attributes"],
        "events": [
            {
                "name": event.name,
                "timestamp": _time(event.timestamp),
                "attributes": {key: json.dumps(value) for key, value in event.attributes.items()},
            }
            for event in span.events
        ],
    }


def _archived_assessment(assessment: Assessment) -> dict[str, Any]:
    feedback, expectation = assessment.feedback, assessment.expectation
    error = feedback and feedback.error
    return {
        "assessment_id": assessment.assessment_id,
        "trace_id": assessment.trace_id,
        "assessment_name": assessment.name,
        "source": {"source_id": assessment.source.source_id, "source_type": assessment.source.source_type},
        "create_time": _time((assessment.create_time_ms or 0) * 10**6),
        "last_update_time": _time((assessment.last_update_time_ms or 0) * 10**6),
        "expectation": expectation and {"value": json.dumps(expectation.value)},
        "feedback": feedback
        and {
            "value": json.dumps(feedback.value),
            "error": error and {"error_code": error.error_code, "error_message": error.error_message},
        },
        "rationale": assessment.rationale,
        "metadata": assessment.metadata,
        "span_id": assessment.span_id,
    }


def _time(nanoseconds: int) -> datetime:
    """Whole microseconds, as in a column of type TIMESTAMP."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


# ---- OpenTelemetry tables ----


def span_rows(traces: list[Trace]) -> list[dict[str, Any]]:
    """The rows of the spans as built by Databricks' client: version 2, with JSON for VARIANT."""
    from databricks.migrations.migrate_traces_to_uc.transform import traces_to_otel_span_rows

    return traces_to_otel_span_rows(traces, "0")


def annotation_rows(traces: list[Trace]) -> list[dict[str, Any]]:
    """The rows of the annotations as built by Databricks' client, with JSON for VARIANT."""
    from databricks.migrations.migrate_traces_to_uc.transform import traces_to_otel_annotation_rows

    return traces_to_otel_annotation_rows(traces, "0")


def as_v1(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a span in version 1: attributes are text, and it lacks the first four columns."""
    kept = {name: row[name] for name in OTEL_SPAN_V1.names}
    return {
        **kept,
        "attributes": _texts(row["attributes"]),
        "events": [{**event, "attributes": _texts(event["attributes"])} for event in row["events"]],
        "links": [{**link, "attributes": _texts(link["attributes"])} for link in row["links"]],
        "resource": {**row["resource"], "attributes": _texts(row["resource"]["attributes"])},
        "instrumentation_scope": {
            **row["instrumentation_scope"],
            "attributes": _texts(row["instrumentation_scope"]["attributes"]),
        },
    }


def _texts(attributes: str) -> dict[str, str]:
    """Attributes as text, as OpenTelemetry does it: strings unchanged, everything else as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in json.loads(attributes).items()
    }


def write_otel_v1(prefix: str, traces: list[Trace]) -> None:
    """The tables <prefix>_otel_spans and <prefix>_otel_annotations of version 1, as folders."""
    write(Path(f"{prefix}_otel_spans"), [as_v1(row) for row in span_rows(traces)], OTEL_SPAN_V1)
    write(Path(f"{prefix}_otel_annotations"), annotation_rows(traces), OTEL_ANNOTATION)


OTEL_V2 = {
    "spans": """CREATE TABLE {name} (
        record_id STRING, time TIMESTAMP, date DATE, service_name STRING, trace_id STRING, span_id STRING,
        trace_state STRING, parent_span_id STRING, flags INT, name STRING, kind STRING,
        start_time_unix_nano BIGINT, end_time_unix_nano BIGINT, attributes VARIANT, dropped_attributes_count INT,
        events ARRAY<STRUCT<time_unix_nano BIGINT, name STRING, attributes VARIANT, dropped_attributes_count INT>>,
        dropped_events_count INT,
        links ARRAY<STRUCT<trace_id STRING, span_id STRING, trace_state STRING, attributes VARIANT,
            dropped_attributes_count INT, flags INT>>,
        dropped_links_count INT, status STRUCT<message STRING, code STRING>,
        resource STRUCT<attributes VARIANT, dropped_attributes_count INT>, resource_schema_url STRING,
        instrumentation_scope STRUCT<name STRING, version STRING, attributes VARIANT, dropped_attributes_count INT>,
        span_schema_url STRING
    ) USING DELTA CLUSTER BY (time, service_name, trace_id) TBLPROPERTIES ('otel.schemaVersion' = 'v2')""",
    "annotations": """CREATE TABLE {name} (
        annotation_id STRING, target_type STRING, target_id STRING, annotation_type STRING, name STRING, value VARIANT,
        comment STRING, metadata VARIANT, created_at TIMESTAMP, created_by STRING, updated_at TIMESTAMP,
        updated_by STRING, deleted_at TIMESTAMP, deleted_by STRING, _change_type STRING
    ) USING DELTA""",
}


def write_otel_v2(session: SparkSession, prefix: str, traces: list[Trace]) -> None:
    """The tables <prefix>_otel_spans and <prefix>_otel_annotations of version 2, in the catalog of a Spark server."""
    from databricks.migrations.migrate_traces_to_uc.write import merge_annotations, merge_spans

    for kind, definition in OTEL_V2.items():
        session.sql(definition.format(name=f"{prefix}_otel_{kind}"))
    starts_ms = [span.start_time_ns // 10**6 for trace in traces for span in trace.data.spans]
    merge_spans(session, span_rows(traces), f"{prefix}_otel_spans", min(starts_ms), max(starts_ms) + 1)
    merge_annotations(session, annotation_rows(traces), f"{prefix}_otel_annotations")


def main(remote: str, tracking_uri: str, hours: str, folder: str) -> None:
    from monitoring_pipeline.archive.window import archive_window
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.spark import SparkResource
    from monitoring_pipeline.resources.tracking import TrackingResource
    from monitoring_pipeline.settings import ArchiveSettings
    from monitoring_pipeline.windows import HOUR, Window
    from monitoring_pipeline_tests.conftest import RECORDED_WINDOW

    spark = SparkResource(remote=remote)
    tracking = TrackingResource(tracking_uri=tracking_uri, experiments=["airline"])
    window = Window(RECORDED_WINDOW.start, RECORDED_WINDOW.start + int(hours) * HOUR)
    traces = traces_of(tracking, window)
    write_otel_v2(spark.session, "spark_catalog.default.recorded", traces)
    source = ArchiveSettings(source="otel", location="spark_catalog.default.recorded")
    print(archive_window(source, tracking, LakeResource(location=folder, spark=spark), window))


if __name__ == "__main__":
    main(*sys.argv[1:])
