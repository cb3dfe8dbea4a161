"""A trace as a row: each column of a hand-made trace, and the odd formats in stores, compared with MLflow."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from mlflow.entities import (
    AssessmentSource,
    Expectation,
    Feedback,
    IssueReference,
    Span,
    Trace,
    TraceData,
    TraceInfo,
    TraceState,
)
from mlflow.entities.assessment_error import AssessmentError
from mlflow.entities.span import LazySpan
from mlflow.entities.trace_location import TraceLocation

from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.flatten import flatten
from monitoring_pipeline_tests.sources.stores import START, START_MS, span_json, trace_id

ARCHIVED_AT = datetime(2026, 2, 1, tzinfo=UTC)
ASSESSED_MS = START_MS + 3_600_123
HUMAN = AssessmentSource(source_type="HUMAN", source_id="ada")
STEP = timedelta(microseconds=1)

SPANS = [
    span_json(
        1,
        1,
        name="agent",
        end_time_unix_nano=START_MS * 1_000_000 + 3_500_000_999,
        attributes={
            "mlflow.spanType": '"AGENT"',
            "mlflow.spanInputs": '{"question": "Où?"}',
            "mlflow.spanOutputs": '"here"',
            "mlflow.spanFunctionName": '"run"',
            "user.id": '"u1"',
            "tries": "2",
        },
        events=[{"name": "retry", "time_unix_nano": START_MS * 1_000_000 + 1_999, "attributes": {"n": 1, "why": "x"}}],
    ),
    span_json(
        1,
        2,
        parent=1,
        start_time_unix_nano=START_MS * 1_000_000 + 1_000_001_001,
        end_time_unix_nano=None,
        status={"code": "STATUS_CODE_ERROR", "message": "no such flight"},
    ),
]  # fmt: skip
ASSESSMENTS = [
    Feedback(name="good", value=True, source=HUMAN, rationale="short", metadata={"k": "v"}, span_id="0" * 15 + "1"),
    Feedback(name="score", value={"b": 2.0, "a": 1.5}),
    Feedback(name="judge", error=AssessmentError(error_code="TIMEOUT", error_message="too slow")),
    Expectation(name="facts", value=["x", "y"], source=HUMAN),
    Expectation(name="answer", value=42, source=HUMAN),
    IssueReference(issue_id="issue-1", issue_name="slow"),
]


def made_trace(spans: list[dict[str, Any]] | None = None, **changes: Any) -> Trace:
    for index, assessment in enumerate(ASSESSMENTS):
        assessment.assessment_id = f"a-{index}"
        assessment.create_time_ms = assessment.last_update_time_ms = ASSESSED_MS
    values: dict[str, Any] = {
        "request_time": START_MS + 1_234,
        "state": TraceState.ERROR,
        "request_preview": "a preview",
        "response_preview": "another",
        "client_request_id": "request-1",
        "execution_duration": 3500,
        "trace_metadata": {
            "mlflow.sourceRun": "run-1",
            "mlflow.trace.user": "ada",
            "mlflow.trace.session": "s1",
            "mlflow.trace.tokenUsage": '{"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}',
            "mlflow.trace.cost": '{"input_cost": 0.1, "output_cost": 0.15, "total_cost": 0.25}',
        },
        "tags": {"mlflow.traceName": "my_agent", "environment": "production"},
        "assessments": ASSESSMENTS,
    }
    info = TraceInfo(trace_id(1), TraceLocation.from_experiment_id("7"), **(values | changes))
    return Trace(info, TraceData([Span.from_dict(span) for span in (SPANS if spans is None else spans)]))


def as_stored(span: dict[str, Any]) -> Trace:
    """A trace with this span as a database store returns it: the stored JSON, not parsed."""
    trace = made_trace([])
    trace.data.spans = [LazySpan.from_stored_content(json.dumps(span))]
    return trace


def flat(trace: Trace) -> dict[str, Any]:
    """The row, through Arrow and back, so that it fits the table."""
    schema = AGENT_TRACES.columns
    return pa.Table.from_pylist([flatten(trace, ARCHIVED_AT)], schema=schema).to_pylist(maps_as_pydicts="strict")[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("trace_id", trace_id(1)),
        ("experiment_id", "7"),
        ("run_id", "run-1"),
        (
            "trace_info",
            {"request_id": trace_id(1), "timestamp": START + timedelta(milliseconds=1234), "status": "ERROR"},
        ),
        ("created_at", ARCHIVED_AT),
        ("trace_hour", START),
        ("trace_name", "my_agent"),
        ("user_id", "ada"),
        ("session_id", "s1"),
        ("request", '{"question": "Où?"}'),
        ("response", '"here"'),
        ("duration_ms", 3500.0),
        ("input_tokens", 3),
        ("output_tokens", 4),
        ("total_tokens", 7),
        ("cost_usd", 0.25),
        ("tags", {"mlflow.traceName": "my_agent", "environment": "production"}),
        ("client_request_id", "request-1"),
    ],
)
def test_column(column: str, value: Any) -> None:
    assert flat(made_trace())[column] == value


def test_every_column_of_the_table_is_filled() -> None:
    row = flatten(made_trace(), ARCHIVED_AT)
    assert row.keys() | {"experiment_name", "redactions", "date"} == set(AGENT_TRACES.schema.names)


def test_metadata_contains_all_trace_metadata() -> None:
    assert flat(made_trace())["metadata"] == made_trace().info.trace_metadata


def test_a_span() -> None:
    assert flat(made_trace())["spans"][0] == {
        "span_id": "0000000000000001",
        "name": "agent",
        "span_type": "AGENT",
        "start_time": START + timedelta(seconds=1),
        "end_time": START + timedelta(seconds=3.5),
        "status": "OK",
        "inputs": '{"question": "Où?"}',
        "outputs": '"here"',
        "tags": {"user.id": '"u1"', "tries": "2"},
        "metadata": {"mlflow.spanFunctionName": '"run"'},
        "parent_id": None,
        "status_message": None,
        "events": [{"name": "retry", "timestamp": START + STEP, "attributes": {"n": "1", "why": "x"}}],
    }


def test_an_unfinished_child_span_that_failed() -> None:
    span = flat(made_trace())["spans"][1]
    assert (span["parent_id"], span["end_time"]) == ("0000000000000001", None)
    assert (span["status"], span["status_message"]) == ("ERROR", "no such flight")


def test_span_ids_are_the_ids_that_mlflow_shows() -> None:
    trace = made_trace()
    shown = [(span.span_id, span.parent_id) for span in trace.data.spans]
    assert [(span["span_id"], span["parent_id"]) for span in flat(trace)["spans"]] == shown


@pytest.mark.parametrize("nanoseconds", [0, 1, 999, 1000, 999_999_999])
def test_times_are_cut_to_the_microsecond(nanoseconds: int) -> None:
    span = span_json(1, end_time_unix_nano=(START_MS + 60_000) * 1_000_000 + nanoseconds)
    ended = START + timedelta(minutes=1) + (nanoseconds // 1000) * STEP
    assert flat(made_trace([span]))["spans"][0]["end_time"] == ended


@pytest.mark.parametrize("nanoseconds", [-1, 1, 10**9, 10**20])
def test_a_time_that_is_not_of_this_century_is_null_and_noted(nanoseconds: int) -> None:
    row = flat(as_stored(span_json(1, start_time_unix_nano=nanoseconds)))
    assert row["spans"][0]["start_time"] is None
    assert row["implausible"] == [f"span start_time {nanoseconds}"]


def test_an_end_of_zero_is_none_as_in_mlflow() -> None:
    span = span_json(1, end_time_unix_nano=0)
    assert Span.from_dict(span).end_time_ns is None
    assert flat(as_stored(span))["spans"][0]["end_time"] is None


@pytest.mark.parametrize(
    "span",
    [
        span_json(1, 10, parent=11),
        span_json(1, 10, span_id=f"{10:016x}", parent_span_id=f"{11:016x}", trace_id=trace_id(1)),  # as of MLflow 3.5.0
        span_json(1, 10, parent_span_id=""),
    ],
)
def test_ids_of_stored_spans_are_read_as_mlflow_reads_them(span: dict[str, Any]) -> None:
    row, mlflow_span = flat(as_stored(span))["spans"][0], Span.from_dict(span)
    assert (row["span_id"], row["parent_id"]) == (mlflow_span.span_id, mlflow_span.parent_id)


def test_a_root_with_an_empty_parent_provides_the_request() -> None:
    span = span_json(1, parent_span_id="", attributes={"mlflow.spanInputs": '"hello"'})
    assert flat(as_stored(span))["request"] == '"hello"'


@pytest.mark.parametrize("code", ["STATUS_CODE_OK", "STATUS_CODE_ERROR", "STATUS_CODE_UNSET", "OK", "ERROR"])
def test_status_of_a_span_equals_mlflows(code: str) -> None:
    span = span_json(1, status={"code": code, "message": ""})
    assert flat(as_stored(span))["spans"][0]["status"] == Span.from_dict(span).status.status_code.value


@pytest.mark.parametrize(
    ("stored", "span_type"),
    [('"LLM"', "LLM"), ("LLM", "LLM"), ('"my type"', "my type"), ("null", "null"), ("[" * 2000, "[" * 2000)],
)
def test_span_type_may_be_stored_without_quotes(stored: str, span_type: str) -> None:
    assert flat(as_stored(span_json(1, attributes={"mlflow.spanType": stored})))["spans"][0]["span_type"] == span_type


def test_a_span_without_a_type_is_unknown() -> None:
    span = span_json(1)
    del span["attributes"]["mlflow.spanType"]
    assert flat(as_stored(span))["spans"][0]["span_type"] == "UNKNOWN"


def test_attributes_that_are_not_text_become_json() -> None:
    span = span_json(1, attributes={"n": 5, "list": ["a", 1], "mlflow.spanInputs": {"x": None}})
    row = flat(as_stored(span))["spans"][0]
    assert (row["tags"], row["inputs"]) == ({"n": "5", "list": '["a", 1]'}, '{"x": null}')


@pytest.mark.parametrize(
    ("code", "message", "attributes", "expected"),
    [
        ("ERROR", "", {"exception.type": "TimeoutError", "exception.message": "30 s"}, "TimeoutError: 30 s"),
        ("ERROR", "", {"exception.type": "TimeoutError"}, "TimeoutError"),
        ("ERROR", "its own", {"exception.type": "TimeoutError", "exception.message": "30 s"}, "its own"),
        ("ERROR", "", {"other": "x"}, None),
        ("OK", "", {"exception.type": "Retried", "exception.message": "once"}, None),
    ],
)
def test_an_error_without_a_message_has_the_message_of_its_exception(
    code: str, message: str, attributes: dict[str, str], expected: str | None
) -> None:
    events = [{"name": "exception", "time_unix_nano": START_MS * 10**6, "attributes": attributes}]
    span = span_json(1, events=events, status={"code": f"STATUS_CODE_{code}", "message": message})
    assert flat(made_trace([span]))["spans"][0]["status_message"] == expected


def test_without_a_root_span_the_topmost_span_is_used() -> None:
    spans = [
        span_json(1, 2, parent=1, attributes={"mlflow.spanInputs": '"inner"', "mlflow.spanOutputs": '"inner"'}),
        span_json(1, 1, parent=77, attributes={"mlflow.spanInputs": '"top"'}),
    ]
    row = flat(made_trace(spans))
    assert (row["request"], row["response"]) == ('"top"', "another")  # a preview replaces what it lacks


ASSESSED_AT = START + timedelta(milliseconds=3_600_123)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (
            0,
            {
                "assessment_id": "a-0",
                "name": "good",
                "kind": "feedback",
                "value": "true",
                "source_type": "HUMAN",
                "source_id": "ada",
                "rationale": "short",
                "error_code": None,
                "error_message": None,
                "span_id": "0000000000000001",
                "create_time": ASSESSED_AT,
                "last_update_time": ASSESSED_AT,
                "metadata": {"k": "v"},
            },
        ),
        (1, {"name": "score", "value": '{"a": 1.5, "b": 2.0}', "source_type": "CODE", "rationale": None}),
        (2, {"name": "judge", "kind": "feedback", "error_code": "TIMEOUT", "error_message": "too slow"}),
        (3, {"name": "facts", "kind": "expectation", "value": '["x", "y"]', "source_type": "HUMAN"}),
        (4, {"name": "answer", "kind": "expectation", "value": "42.0"}),
        (5, {"name": "issue-1", "kind": "issue", "value": None}),
    ],
)
def test_an_assessment(index: int, expected: dict[str, Any]) -> None:
    row = flat(made_trace())["assessments"][index]
    assert {key: row[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ('{"input_tokens": 5}', (5, None)),
        ('{"input_tokens": 5.0, "output_tokens": "6"}', (5, None)),
        ('{"input_tokens": NaN, "output_tokens": Infinity}', (None, None)),
        ('{"input_tokens": true, "output_tokens": 1e30}', (None, None)),
        ("[1]", (None, None)),
        ("not JSON", (None, None)),
        ("[" * 2000, (None, None)),
    ],
)
def test_token_usage_that_is_not_a_number_is_none(usage: str, tokens: tuple[int | None, int | None]) -> None:
    row = flat(made_trace(trace_metadata={"mlflow.trace.tokenUsage": usage}))
    assert (row["input_tokens"], row["output_tokens"]) == tokens


@pytest.mark.parametrize("cost", ["NaN", "Infinity", '"1"', "null"])
def test_a_cost_that_is_not_a_number_is_none(cost: str) -> None:
    assert flat(made_trace(trace_metadata={"mlflow.trace.cost": f'{{"total_cost": {cost}}}'}))["cost_usd"] is None


def test_missing_values_of_a_bare_trace_are_none() -> None:
    bare = {"request_preview": None, "response_preview": None, "client_request_id": None, "execution_duration": None}
    row = flat(made_trace([], trace_metadata={}, tags={}, assessments=[], state=TraceState.IN_PROGRESS, **bare))
    assert {column for column, value in row.items() if value is None} == {
        *("run_id", "trace_name", "user_id", "session_id", "request", "response", "duration_ms", "cost_usd"),
        *("input_tokens", "output_tokens", "total_tokens", "client_request_id", "experiment_name"),
        *("cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "cost_source", "redactions"),
    }
    assert (row["spans"], row["tags"], row["metadata"], row["assessments"]) == ([], {}, {}, [])


def test_trace_json_is_the_trace() -> None:
    trace = made_trace()
    assert Trace.from_json(flat(trace)["trace_json"]).to_dict() == trace.to_dict()


def test_the_digest_is_the_digest_of_the_trace_json() -> None:
    row = flat(made_trace())
    assert row["content_digest"] == hashlib.sha256(row["trace_json"].encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"tags": {"environment": "staging"}},
        {"state": TraceState.OK},
        {"assessments": []},
        {"execution_duration": 3501},
        {"spans": [span_json(1, end_time_unix_nano=START_MS * 1_000_000 + 5_000_001)]},
    ],
)
def test_the_digest_of_a_changed_trace_differs(change: dict[str, Any]) -> None:
    assert flat(made_trace(**change))["content_digest"] != flat(made_trace())["content_digest"]


def test_another_process_computes_the_same_digest() -> None:
    code = f"from {__name__} import flat, made_trace; print(flat(made_trace())['content_digest'])"
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == flat(made_trace())["content_digest"]


@pytest.mark.parametrize(
    ("value", "text"), [("", '""'), (0, "0"), (False, "false"), ("plain", '"plain"'), ("[1]", "[1]")]
)
def test_attributes_become_json_texts_and_none_is_lost(value: Any, text: str) -> None:
    row = flat(made_trace(spans=[span_json(1, attributes={"key": value})]))
    assert row["spans"][0]["tags"] == {"key": text}
    assert Trace.from_json(row["trace_json"]).data.spans[0].get_attribute("key") == json.loads(text)
