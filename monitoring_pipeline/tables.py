"""The tables of the lake: names, columns, keys. Names and meanings of columns are a contract with users' queries.

Every table is partitioned by `date`, the UTC date of its hour column, so that reading an hour opens one day's files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
MAP = pa.map_(pa.string(), pa.string())
COUNTS = pa.map_(pa.string(), pa.int64())

SPAN_EVENT = pa.struct([("name", pa.string()), ("timestamp", TIME), ("attributes", MAP)])
SPAN = pa.struct(
    [
        ("span_id", pa.string()),
        ("name", pa.string()),
        ("span_type", pa.string()),
        ("start_time", TIME),
        ("end_time", TIME),
        ("status", pa.string()),
        ("inputs", pa.string()),
        ("outputs", pa.string()),
        ("tags", MAP),
        ("metadata", MAP),
        ("parent_id", pa.string()),
        ("status_message", pa.string()),
        ("events", pa.list_(SPAN_EVENT)),
    ]
)
TRACE_ASSESSMENT = pa.struct(
    [
        ("assessment_id", pa.string()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("value", pa.string()),
        ("source_type", pa.string()),
        ("source_id", pa.string()),
        ("rationale", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("span_id", pa.string()),
        ("create_time", TIME),
        ("last_update_time", TIME),
        ("metadata", MAP),
    ]
)
ERROR_SPAN = pa.struct(
    [("span_id", pa.string()), ("name", pa.string()), ("span_type", pa.string()), ("status_message", pa.string())]
)
DELIVERY = pa.struct(
    [
        ("notifier", pa.string()),
        ("event", pa.string()),
        ("state", pa.string()),
        ("attempts", pa.int64()),
        ("created_at", TIME),
        ("tried_at", TIME),
        ("sent_at", TIME),
        ("error", pa.string()),
    ]
)
TOKENS = [("input_tokens", pa.int64()), ("output_tokens", pa.int64()), ("total_tokens", pa.int64())]
TOKEN_KINDS = [
    ("cached_input_tokens", pa.int64()),
    ("cache_write_tokens", pa.int64()),
    ("reasoning_tokens", pa.int64()),
]
TOKEN_COLUMNS = tuple(name for name, _ in (*TOKENS, *TOKEN_KINDS))
MODEL_CALL = pa.struct(
    [
        ("span_id", pa.string()),
        ("provider", pa.string()),
        ("model", pa.string()),
        *TOKENS,
        *TOKEN_KINDS,
        ("cost_usd", pa.float64()),
        ("cost_source", pa.string()),
        ("status", pa.string()),
        ("duration_ms", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Table:
    """One table of the lake.

    `hour` is the column with the start of a row's hour (or day). `key` columns identify a row within that hour;
    `content` columns differ between two versions of a row (if empty, rows with the same key are equal). `kept_with` is
    the retention setting of the table, [upkeep] keep_archive_days or keep_results_days (None: rows stay forever).
    """

    name: str
    description: str
    schema: pa.Schema
    hour: Literal["hour", "trace_hour", "day"]
    key: tuple[str, ...]
    content: tuple[str, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    kept_with: Literal["archive", "results"] | None = "results"

    @property
    def columns(self) -> pa.Schema:
        """The columns without `date`, which follows from `hour`."""
        return self.schema.remove(self.schema.get_field_index("date"))


def _schema(*fields: pa.Field | tuple[str, pa.DataType], required: tuple[str, ...] = ()) -> pa.Schema:
    columns = pa.schema([*fields, ("date", pa.date32())])
    return pa.schema([column.with_nullable(column.name not in required) for column in columns])


AGENT_TRACES = Table(
    "agent_traces",
    "All traces, lossless: trace_json is the complete trace, the other columns are for queries.",
    _schema(
        ("trace_id", pa.string()),
        ("experiment_id", pa.string()),
        ("run_id", pa.string()),
        ("trace_info", pa.struct([("request_id", pa.string()), ("timestamp", TIME), ("status", pa.string())])),
        ("spans", pa.list_(SPAN)),
        ("created_at", TIME),
        ("trace_hour", TIME),
        ("trace_name", pa.string()),
        ("user_id", pa.string()),
        ("session_id", pa.string()),
        ("request", pa.string()),
        ("response", pa.string()),
        ("duration_ms", pa.float64()),
        *TOKENS,
        ("cost_usd", pa.float64()),
        ("tags", MAP),
        ("metadata", MAP),
        ("assessments", pa.list_(TRACE_ASSESSMENT)),
        ("trace_json", pa.string()),
        ("client_request_id", pa.string()),
        ("experiment_name", pa.string()),
        ("content_digest", pa.string()),
        ("redactions", COUNTS),
        *TOKEN_KINDS,
        ("cost_source", pa.string()),
        ("model_calls", pa.list_(MODEL_CALL)),
        ("implausible", pa.list_(pa.string())),
        ("part_digests", MAP),
        required=("trace_id", "created_at", "trace_hour"),
    ),
    hour="trace_hour",
    key=("trace_id",),
    content=("content_digest",),
    properties={"delta.enableChangeDataFeed": "true"},
    kept_with="archive",
)

QUARANTINED_TRACES = Table(
    "quarantined_traces",
    "Traces that could not be read or flattened, with the reason and the available text.",
    _schema(("trace_id", pa.string()), ("trace_hour", TIME), ("reason", pa.string()), ("raw", pa.string())),
    hour="trace_hour",
    key=("trace_id",),
    kept_with="archive",
)

ARCHIVED_HOURS = Table(
    "archived_hours",
    "Source counts of each hour at its last archive run; an hour whose counts differ now is due.",
    _schema(
        ("hour", TIME),
        ("source_traces", pa.int64()),
        ("source_in_progress", pa.int64()),
        ("source_assessments", pa.int64()),
        ("source_mark", pa.string()),
        ("archived_at", TIME),
        ("unreadable_since", TIME),
        ("unreadable_at", TIME),
        required=("hour",),
    ),
    hour="hour",
    key=("hour",),
    content=("source_traces", "source_in_progress", "source_assessments", "source_mark", "unreadable_at"),
    kept_with=None,  # hours whose traces retention removed must not become due again
)

TRACE_PERFORMANCE = Table(
    "trace_performance",
    "One row per trace: durations in milliseconds, span counts, tokens and cost.",
    _schema(
        ("trace_id", pa.string()),
        ("trace_hour", TIME),
        ("experiment_id", pa.string()),
        ("trace_name", pa.string()),
        ("status", pa.string()),
        ("span_count", pa.int64()),
        ("error_span_count", pa.int64()),
        ("duration_ms", pa.float64()),
        ("total_span_duration_ms", pa.float64()),
        ("avg_span_duration_ms", pa.float64()),
        *TOKENS,
        ("cost_usd", pa.float64()),
    ),
    hour="trace_hour",
    key=("trace_id",),
    kept_with="archive",
)

TRACE_ERRORS = Table(
    "trace_errors",
    "One row per trace with status ERROR or with an ERROR span.",
    _schema(
        ("trace_id", pa.string()),
        ("trace_hour", TIME),
        ("experiment_id", pa.string()),
        ("trace_name", pa.string()),
        ("request_id", pa.string()),
        ("timestamp", TIME),
        ("status", pa.string()),
        ("request", pa.string()),
        ("error_spans", pa.list_(ERROR_SPAN)),
    ),
    hour="trace_hour",
    key=("trace_id",),
    kept_with="archive",
)

HOURLY_PERFORMANCE = Table(
    "hourly_performance",
    "Counts, error rate, exact latency percentiles of ended traces, tokens and cost per hour, experiment and trace "
    "name (trace_name null: all names; empty: traces without a name).",
    _schema(
        ("hour", TIME),
        ("experiment_id", pa.string()),
        ("trace_name", pa.string()),
        ("trace_count", pa.int64()),
        ("error_count", pa.int64()),
        ("error_rate", pa.float64()),
        ("avg_duration_ms", pa.float64()),
        ("p50_duration_ms", pa.float64()),
        ("p95_duration_ms", pa.float64()),
        ("p99_duration_ms", pa.float64()),
        ("span_count", pa.int64()),
        *TOKENS,
        ("cost_usd", pa.float64()),
    ),
    hour="hour",
    key=("hour", "experiment_id", "trace_name"),
)

SPAN_PROFILE = Table(
    "span_profile",
    "Latency breakdown: durations and self time per hour, experiment, span type and span name "
    "(span_name null: all spans of the type).",
    _schema(
        ("hour", TIME),
        ("experiment_id", pa.string()),
        ("span_type", pa.string()),
        ("span_name", pa.string()),
        ("span_count", pa.int64()),
        ("error_count", pa.int64()),
        ("total_ms", pa.float64()),
        ("avg_ms", pa.float64()),
        ("p50_ms", pa.float64()),
        ("p95_ms", pa.float64()),
        ("p99_ms", pa.float64()),
        ("max_ms", pa.float64()),
        ("self_time_ms", pa.float64()),
    ),
    hour="hour",
    key=("hour", "experiment_id", "span_type", "span_name"),
)

MODEL_USAGE = Table(
    "model_usage",
    "Calls of models in each hour, by experiment, provider and model: tokens by kind, cost, errors and durations.",
    _schema(
        ("hour", TIME),
        ("experiment_id", pa.string()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("call_count", pa.int64()),
        ("error_count", pa.int64()),
        ("error_rate", pa.float64()),
        *TOKENS,
        *TOKEN_KINDS,
        ("cost_usd", pa.float64()),
        ("unpriced_count", pa.int64()),
        ("p50_ms", pa.float64()),
        ("p95_ms", pa.float64()),
        ("p99_ms", pa.float64()),
    ),
    hour="hour",
    key=("hour", "experiment_id", "provider", "model"),
)

RESULT = [
    ("trace_id", pa.string()),
    ("trace_hour", TIME),
    ("experiment_id", pa.string()),
    ("scorer", pa.string()),
    ("scorer_digest", pa.string()),
    ("scorer_version", pa.int64()),
    ("value", pa.string()),
    ("score", pa.float64()),
    ("rationale", pa.string()),
    ("error_code", pa.string()),
    ("error_message", pa.string()),
    ("source_type", pa.string()),
    ("sample_rate", pa.float64()),
    ("assessed_at", TIME),
    ("duration_ms", pa.float64()),
    ("input_tokens", pa.int64()),
    ("output_tokens", pa.int64()),
    ("cost_usd", pa.float64()),
    ("assessment_id", pa.string()),
    ("dagster_run_id", pa.string()),
    ("session_id", pa.string()),
    ("session_traces", pa.int64()),
    ("content_digest", pa.string()),
    ("unfinished", pa.bool_()),
    ("session_trace_ids", pa.list_(pa.string())),
]
RESULT_REQUIRED = ("trace_id", "trace_hour", "scorer", "scorer_digest", "assessment_id")

ASSESSMENTS = Table(
    "assessments",
    "One row per trace, scorer and digest: a score or an error, for the content that the trace has now or had last. "
    "Tokens and cost include earlier attempts at the same assessment. A session scorer has one row per session, at the "
    "session's first trace; session_id, session_traces (the number of its traces) and session_trace_ids are set only "
    "there.",
    _schema(*RESULT, required=RESULT_REQUIRED),
    hour="trace_hour",
    key=("assessment_id",),
    content=("assessed_at",),
)

SUPERSEDED_ASSESSMENTS = Table(
    "superseded_assessments",
    "Earlier results of traces and sessions whose content has changed since: the rows that newer results replaced in "
    "assessments. Tokens and cost of a row are contained in its newer row.",
    _schema(*RESULT, ("superseded_at", TIME), required=RESULT_REQUIRED),
    hour="trace_hour",
    key=("assessment_id", "assessed_at"),
)

NOT_APPLICABLE = Table(
    "not_applicable",
    "Traces for which a scorer returned None: not applicable. They have no row in assessments.",
    _schema(
        ("trace_id", pa.string()),
        ("trace_hour", TIME),
        ("experiment_id", pa.string()),
        ("scorer", pa.string()),
        ("scorer_digest", pa.string()),
        ("assessed_at", TIME),
        ("assessment_id", pa.string()),
        ("session_traces", pa.int64()),
        ("content_digest", pa.string()),
        required=RESULT_REQUIRED,
    ),
    hour="trace_hour",
    key=("assessment_id",),
    content=("session_traces", "content_digest"),
)

SCORER_COVERAGE = Table(
    "scorer_coverage",
    "The ledger: archived = eligible + filtered_out + unsampled, eligible = scored + failed + over_budget + pending. "
    "not_applicable is the part of filtered_out for which the scorer returned None; stale counts the traces whose "
    "content has changed since their result, which stays until they are scored again.",
    _schema(
        ("hour", TIME),
        ("experiment_id", pa.string()),
        ("scorer", pa.string()),
        ("scorer_digest", pa.string()),
        ("archived", pa.int64()),
        ("filtered_out", pa.int64()),
        ("unsampled", pa.int64()),
        ("eligible", pa.int64()),
        ("scored", pa.int64()),
        ("failed", pa.int64()),
        ("over_budget", pa.int64()),
        ("pending", pa.int64()),
        ("not_applicable", pa.int64()),
        ("stale", pa.int64()),
    ),
    hour="hour",
    key=("hour", "experiment_id", "scorer", "scorer_digest"),
    content=(
        "archived",
        "filtered_out",
        "unsampled",
        "eligible",
        "scored",
        "failed",
        "over_budget",
        "pending",
        "not_applicable",
        "stale",
    ),
)

HOURLY_QUALITY = Table(
    "hourly_quality",
    "Mean score and pass rate per hour, experiment, scorer and digest, each with its 95 % interval. pass_rate follows "
    "the scorer's pass_if; without pass_if it is set only if every score is a pass or a fail. population counts the "
    "traces that the figures stand for: weigh hours by it.",
    _schema(
        ("hour", TIME),
        ("experiment_id", pa.string()),
        ("scorer", pa.string()),
        ("scorer_digest", pa.string()),
        ("scored", pa.int64()),
        ("mean_score", pa.float64()),
        ("pass_rate", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("pass_low", pa.float64()),
        ("pass_high", pa.float64()),
        ("population", pa.int64()),
        ("failed", pa.int64()),
        ("cost_usd", pa.float64()),
    ),
    hour="hour",
    key=("hour", "experiment_id", "scorer", "scorer_digest"),
)

WRITTEN_BACK = Table(
    "written_back",
    "Results sent to MLflow as feedback; assessed_at is the time of the result that was sent. The outcome withdrawn: "
    "the feedback was removed, because the trace has changed and has no value now.",
    _schema(
        ("assessment_id", pa.string()),
        ("trace_id", pa.string()),
        ("trace_hour", TIME),
        ("scorer", pa.string()),
        ("scorer_digest", pa.string()),
        ("assessed_at", TIME),
        ("written_at", TIME),
        ("outcome", pa.string()),
        required=("assessment_id", "trace_id", "trace_hour"),
    ),
    hour="trace_hour",
    key=("assessment_id",),
    content=("assessed_at", "outcome"),
)

SCORER_AGREEMENT = Table(
    "scorer_agreement",
    "Agreement of a scorer with human feedback (reference human) or with another of its digests (reference digest) on "
    "the traces of a day that both assessed: counts of pass and fail, agreement, Cohen's kappa and its 95 % interval. "
    "Count names have the scorer's result first.",
    _schema(
        ("day", TIME),
        ("experiment_id", pa.string()),
        ("scorer", pa.string()),
        ("scorer_digest", pa.string()),
        ("reference", pa.string()),
        ("reference_name", pa.string()),
        ("pass_pass", pa.int64()),
        ("pass_fail", pa.int64()),
        ("fail_pass", pa.int64()),
        ("fail_fail", pa.int64()),
        ("agreement", pa.float64()),
        ("kappa", pa.float64()),
        ("kappa_low", pa.float64()),
        ("kappa_high", pa.float64()),
    ),
    hour="day",
    key=("day", "experiment_id", "scorer", "scorer_digest", "reference", "reference_name"),
    content=("pass_pass", "pass_fail", "fail_pass", "fail_fail"),
)

DELETED_TRACES = Table(
    "deleted_traces",
    "Traces deleted on request, as digests of their ids without content. Archiving skips them.",
    _schema(
        ("trace_digest", pa.string()),
        ("trace_hour", TIME),
        ("request_reference", pa.string()),
        ("requested_at", TIME),
        ("completed_at", TIME),
        required=("trace_digest", "trace_hour", "requested_at"),
    ),
    hour="trace_hour",
    key=("trace_digest",),
    content=("completed_at",),
    kept_with=None,
)

ALERTS = Table(
    "alerts",
    "One row per episode of an alert, from the first time a rule holds in a scope until it has not held for a whole "
    "window. deliveries lists the alert's messages, sent or pending.",
    _schema(
        ("hour", TIME),
        ("rule", pa.string()),
        ("scope", pa.string()),
        ("metric", pa.string()),
        ("kind", pa.string()),
        ("severity", pa.string()),
        ("state", pa.string()),
        ("measured", pa.float64()),
        ("held_against", pa.float64()),
        ("detail", pa.string()),
        ("opened_at", TIME),
        ("last_held_at", TIME),
        ("resolved_at", TIME),
        ("last_notified_at", TIME),
        ("deliveries", pa.list_(DELIVERY)),
        ("revision", pa.int64()),
        required=("hour", "rule", "scope", "state", "opened_at"),
    ),
    hour="hour",
    key=("hour", "rule", "scope"),
    content=("revision",),
    kept_with=None,
)

TABLES: tuple[Table, ...] = (
    AGENT_TRACES,
    QUARANTINED_TRACES,
    ARCHIVED_HOURS,
    TRACE_PERFORMANCE,
    TRACE_ERRORS,
    HOURLY_PERFORMANCE,
    SPAN_PROFILE,
    MODEL_USAGE,
    ASSESSMENTS,
    SUPERSEDED_ASSESSMENTS,
    NOT_APPLICABLE,
    SCORER_COVERAGE,
    HOURLY_QUALITY,
    WRITTEN_BACK,
    SCORER_AGREEMENT,
    DELETED_TRACES,
    ALERTS,
)
