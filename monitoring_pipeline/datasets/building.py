"""Builds datasets: records from the archive rows that a query selects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.datasets.diverse import Candidate, Embed, diverse_sample
from monitoring_pipeline.datasets.failing import failing
from monitoring_pipeline.datasets.query import Query
from monitoring_pipeline.datasets.records import Dataset, Origin, Record
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS
from monitoring_pipeline.text import json_or_text
from monitoring_pipeline.traces.filters import matches

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from monitoring_pipeline.resources.lake import LakeResource

COLUMNS = ("trace_id", "trace_hour", "trace_info.timestamp", "session_id", "request", "response", "assessments", "tags")
UNFINISHED = "IN_PROGRESS"
BARE_INPUT = "input"  # the key for inputs that are not an object, since evaluate requires a dictionary


def dataset_of_lake(
    lake: LakeResource, query: Query, embed: Embed | None = None, versions: Mapping[str, int] | None = None
) -> Dataset:
    """Return the dataset for `query` from the latest state of the archive, or from the given `versions` of its tables.

    Raises:
        MonitoringError: the filter is not a valid MLflow filter.
        LakeError: a version does not exist.
    """
    if versions is None:
        read = [AGENT_TRACES, *([ASSESSMENTS] if query.scorer_digest and not query.run_id else [])]
        versions = {table.name: lake.version(table) for table in read}
    traces = lake.read(AGENT_TRACES, query.window, versions[AGENT_TRACES.name])
    pinned = versions.get(ASSESSMENTS.name)
    assessments = None if pinned is None else lake.read(ASSESSMENTS, query.window, pinned)
    return dataset_of_rows(traces, assessments, query, embed, versions)


def dataset_of_rows(
    traces: DataFrame,
    assessments: DataFrame | None,
    query: Query,
    embed: Embed | None = None,
    versions: Mapping[str, int] | None = None,
) -> Dataset:
    """Return the dataset for `query` from rows of `agent_traces` and, if the query needs results, `assessments`.

    Records are ordered newest first; a sample is in the order of drawing. A record has the expectations logged on its
    trace. Its metadata has test_id (a digest of the trace's id), source_trace, trace_hour and session_id; for the kinds
    failures and regression also scorer, scorer_digest, original_score and failure_reason; for tagged also tag and
    tag_value. Missing values are left out.

    Raises:
        MonitoringError: the filter is not a valid MLflow filter.
    """
    from pyspark.sql import functions as F

    rows = _chosen(traces, assessments, query)
    result = ("score", "rationale", "digest") if query.kind in ("failures", "regression") else ()
    if query.kind == "diverse":
        drawn = _drawn(rows, query, embed)
        rows = rows.where(F.col("trace_id").isin(*drawn))
        place = {trace_id: number for number, trace_id in enumerate(drawn)}
        found = sorted(_collected(rows), key=lambda row: place[row["trace_id"]])
    else:
        rows = rows.orderBy(F.desc("trace_info.timestamp"), "trace_id")
        found = _collected(rows if query.max_records is None else rows.limit(query.max_records), *result)
    records = [_record(row, query) for row in found]
    origin = Origin(
        query=query.model_dump(mode="json", exclude_none=True),
        versions=dict(versions or {}),
        scorer_digests={query.scorer: query.scorer_digest} if query.scorer and query.scorer_digest else {},
        without_inputs=sum(record is None for record in records),
    )
    return Dataset([record for record in records if record is not None], origin)


def _chosen(traces: DataFrame, assessments: DataFrame | None, query: Query) -> DataFrame:
    from pyspark.sql import functions as F

    try:
        meets_filter = matches(query.filter)
    except ValueError as error:
        raise MonitoringError(str(error)) from error
    rows = traces.where(F.col("trace_info.status") != UNFINISHED).where(meets_filter)
    if query.experiment_id:
        rows = rows.where(F.col("experiment_id") == query.experiment_id)
    match query.kind:
        case "expectations":
            return rows.where(F.array_contains(F.col("assessments.kind"), "expectation"))
        case "tagged":
            tag = F.col("tags")[query.tag]
            return rows.where(tag.isNotNull() if query.tag_value is None else tag == query.tag_value)
        case "failures" | "regression":
            return failing(rows, assessments, query)
        case _:
            return rows


def _collected(rows: DataFrame, *more: str) -> list[dict[str, Any]]:
    # Arrow keeps the time zone; Spark's rows have naive times in the local time zone.
    return rows.select(*COLUMNS, *more).toArrow().to_pylist()


def _drawn(rows: DataFrame, query: Query, embed: Embed | None) -> list[str]:
    from pyspark.sql import functions as F

    tools = F.filter("spans", lambda span: span["span_type"] == "TOOL")
    by_start = F.transform(tools, lambda span: F.struct(span["start_time"], span["span_id"], span["name"]))
    inputs = F.col("request") if embed else F.sha2("request", 256)
    columns = rows.where(F.col("request").isNotNull()).select(
        "trace_id",
        F.col("trace_info.status").alias("status"),
        "duration_ms",
        F.array_sort(by_start).alias("tools"),
        inputs.alias("inputs"),
    )
    candidates = [
        Candidate(trace_id, status, duration_ms, tuple(name or "" for _, _, name in tools), inputs)
        for trace_id, status, duration_ms, tools, inputs in columns.toLocalIterator()
    ]
    return diverse_sample(candidates, query.sample_size or 0, query.seed or 0, embed)


def _record(row: dict[str, Any], query: Query) -> Record | None:
    """The row as a record; None if its inputs are unknown."""
    inputs = json_or_text(row["request"], allow_nan=False)
    if inputs is None:
        return None
    record: Record = {"inputs": inputs if isinstance(inputs, dict) else {BARE_INPUT: inputs}}
    if query.with_outputs:
        record["outputs"] = json_or_text(row["response"], allow_nan=False)
    if expectations := _expectations(row["assessments"]):
        record["expectations"] = expectations
    record["metadata"] = {key: value for key, value in _lineage(row, query).items() if value is not None}
    return record


def _lineage(row: dict[str, Any], query: Query) -> dict[str, Any]:
    trace_id = row["trace_id"]
    lineage = {
        "test_id": f"test-{hashlib.sha256(trace_id.encode()).hexdigest()[:16]}",
        "source_trace": trace_id,
        "trace_hour": f"{row['trace_hour'].astimezone(UTC):%Y-%m-%dT%H:%MZ}",
        "session_id": row["session_id"],
    }
    if query.kind == "tagged":
        lineage |= {"tag": query.tag, "tag_value": dict(row["tags"])[query.tag]}
    if "score" in row:
        lineage |= {
            "scorer": query.scorer,
            "scorer_digest": row["digest"],
            "original_score": row["score"],
            "failure_reason": row["rationale"],
        }
    return lineage


def _expectations(assessments: list[dict[str, Any]]) -> dict[str, Any]:
    """The expectations logged on a trace, by name; the latest of each name counts."""
    logged = [entry for entry in assessments if entry["kind"] == "expectation" and entry["value"] not in (None, "null")]
    logged.sort(key=lambda entry: (entry["last_update_time"], entry["create_time"], entry["assessment_id"]))
    return {entry["name"]: json_or_text(entry["value"], allow_nan=False) for entry in logged}
