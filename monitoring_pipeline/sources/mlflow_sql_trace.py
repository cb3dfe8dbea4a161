"""Converts a trace of MLflow's database into a row of `agent_traces`.

The reference is MLflow's store (`batch_get_traces` in mlflow/store/tracking/sqlalchemy_store.py). Most traces are
flattened directly from database rows, because building MLflow's entities takes most of the time. Other traces, such as
malformed ones or ones with spans outside the database, go through MLflow's entities.
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow.entities import SpanType, Trace, TraceData, TraceState
from mlflow.entities.span import LazySpan
from mlflow.exceptions import MlflowException, MlflowTraceDataException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.tracking.dbmodels.models import SqlAssessments, SqlTraceInfo, SqlTraceMetadata, SqlTraceTag
from mlflow.store.tracking.utils.trace_analytics import (
    COST_COLUMN_BY_KEY,
    PROMOTED_TRACE_METADATA_KEYS,
    TOKEN_COLUMN_BY_KEY,
    token_count_or_none,
)
from mlflow.tracing.constant import MAX_CHARS_IN_TRACE_INFO_METADATA as METADATA_CHARACTERS
from mlflow.tracing.constant import MAX_CHARS_IN_TRACE_INFO_TAGS_KEY as TAG_KEY_CHARACTERS
from mlflow.tracing.constant import MAX_CHARS_IN_TRACE_INFO_TAGS_VALUE as TAG_CHARACTERS
from mlflow.tracing.constant import TraceMetadataKey
from mlflow.tracing.otel.translation import translate_loaded_span
from mlflow.tracing.utils.artifact_utils import get_archive_uri_for_trace, get_artifact_uri_for_trace

from monitoring_pipeline.text import parse_json
from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace, flatten_parts
from monitoring_pipeline.windows import from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

LONGEST_MS = 315_576_000_000_000  # the longest Duration of protocol buffers

SPANS_LOCATION_TAG = "mlflow.trace.spansLocation"
TRACE_NAME_TAG = "mlflow.traceName"
# Span types as JSON. Not UNKNOWN: for it, MLflow looks for a better type in other attributes.
NAMED_TYPES = {json.dumps(value) for name, value in vars(SpanType).items() if name.isupper()} - {'"UNKNOWN"'}

log = logging.getLogger(__name__)


@dataclass
class StoredTrace:
    """The stored rows of a trace without its spans: columns of `trace_info`, tags, metadata, assessments."""

    info: dict[str, Any]
    tags: dict[str, str | None] = field(default_factory=dict)
    metadata: dict[str, str | None] = field(default_factory=dict)
    assessments: list[dict[str, Any]] = field(default_factory=list)


def trace_of(stored: StoredTrace, contents: list[str], tracking_uri: str) -> FlatTrace | Trace | UnreadableTrace:
    """Return the trace, flattened if possible without MLflow's entities, or the reason why it cannot be read.

    `contents` is the JSON of its spans in the database. MLflow's client fetches spans that are stored elsewhere from
    the server at `tracking_uri`.
    """
    in_database = contents and stored.tags.get(SPANS_LOCATION_TAG) == "TRACKING_STORE"
    if in_database and abs(stored.info["execution_time_ms"] or 0) <= LONGEST_MS:
        try:
            return FlatTrace(_row(stored, contents), functools.partial(_info, stored))
        except Exception as error:  # noqa: BLE001 - malformed content raises any error, and again below
            log.debug("building trace %s with MLflow's entities: %s", stored.info["request_id"], error)
    return _built_by_mlflow(stored, contents, tracking_uri)


def _row(stored: StoredTrace, contents: list[str]) -> dict[str, Any]:
    return flatten_parts(_info_json(stored), [_span(content) for content in contents])


def _span(content: str) -> dict[str, Any]:
    span = parse_json(content)
    if span["attributes"].get("mlflow.spanType") not in NAMED_TYPES:
        translate_loaded_span(span)  # MLflow finds the type among the other attributes
    return span


def _info_json(stored: StoredTrace) -> dict[str, Any]:
    """Equal to MLflow's `TraceInfo.to_dict`, but without the detour through protocol buffers."""
    info, tags = stored.info, stored.tags
    if info["trace_name"] is not None or TRACE_NAME_TAG in tags:
        tags = {key: value for key, value in tags.items() if key != TRACE_NAME_TAG} | _without_none(
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
    } | _without_none(
        {
            "client_request_id": info["client_request_id"],
            "request_preview": info["request_preview"],
            "response_preview": info["response_preview"],
            "execution_duration_ms": info["execution_time_ms"],
            "trace_metadata": _shortened(_metadata(stored), METADATA_CHARACTERS, METADATA_CHARACTERS) or None,
            "tags": _shortened(tags, TAG_KEY_CHARACTERS, TAG_CHARACTERS) or None,
            "assessments": [SqlAssessments(**row).to_mlflow_entity().to_dictionary() for row in stored.assessments]
            or None,
        }
    )


def _metadata(stored: StoredTrace) -> dict[str, str | None]:
    """All metadata of the trace, including values in columns (`compatibility_metadata_from_columns`)."""
    info = stored.info
    metadata = {key: value for key, value in stored.metadata.items() if key not in PROMOTED_TRACE_METADATA_KEYS}
    if info["session_id"] is not None:
        metadata[TraceMetadataKey.TRACE_SESSION] = info["session_id"]
    tokens = _without_none({key: _whole(info[column]) for key, column in TOKEN_COLUMN_BY_KEY.items()})
    if tokens:
        metadata[TraceMetadataKey.TOKEN_USAGE] = json.dumps(tokens)
    if cost := _without_none({key: info[column] for key, column in COST_COLUMN_BY_KEY.items()}):
        metadata[TraceMetadataKey.COST] = json.dumps(cost)
    return metadata


def _whole(count: Any) -> int | None:
    return count if count is None or type(count) is int else token_count_or_none(count)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _shortened(texts: dict[str, str | None], key_characters: int, value_characters: int) -> dict[str, str]:
    return {key[:key_characters]: str(value)[:value_characters] for key, value in texts.items()}


def _built_by_mlflow(stored: StoredTrace, contents: list[str], tracking_uri: str) -> Trace | UnreadableTrace:
    """The trace as MLflow's client returns it, or the reason why it cannot be built."""
    try:
        info = _info(stored)
    except Exception as error:  # noqa: BLE001 - malformed content raises any error
        return unreadable(stored.info["request_id"], stored.info["timestamp_ms"], stored.info["status"], str(error))
    try:
        spans = _spans(info, contents, tracking_uri)
        if spans or info.state == "IN_PROGRESS":
            return Trace(info, TraceData(spans))
        reason = "its spans are missing or corrupt"
    except MlflowException as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - malformed content raises any error
        reason = f"{type(error).__name__}: {error}"
    return UnreadableTrace.of(info, reason)


def _info(stored: StoredTrace) -> TraceInfo:
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
                log.warning("the spans of trace %s are not in its artifacts: %s", info.trace_id, error)
                return []


def unreadable(trace_id: str, started_ms: int, status: str, reason: str) -> UnreadableTrace:
    """Return an unreadable trace with its `reason`, when only its id, time and status are known."""
    raw = json.dumps({"trace_id": trace_id, "timestamp_ms": started_ms, "status": status})
    return UnreadableTrace(trace_id, from_milliseconds(started_ms), reason, raw)
