"""Random and hostile content: it becomes rows, unreadable traces or one kind of error, and nothing else.

`make fuzz` runs these tests with thousands of examples each, drawn anew.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring_pipeline.resources.rows import conform, from_dicts
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.sources.base import AnyTrace
from monitoring_pipeline.sources.mlflow import MlflowSource
from monitoring_pipeline.sources.mlflow_database import opened
from monitoring_pipeline.sources.mlflow_sql import MlflowSqlSource
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.filters import matches, parse_filter
from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace, encodable, flatten_parts
from monitoring_pipeline_tests.sources.stores import HOUR, START_MS, Store, span_json, trace_id

EXAMPLES = int(os.environ.get("MONITORING_FUZZ_EXAMPLES", "40"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
PAYLOADS = [
    "=cmd|' /C calc'!A0",
    "<img src=x onerror=alert(1)>",
    "'; DROP TABLE agent_traces; --",
    "[x](javascript:alert(1))",
    "{{ 7*7 }}${7*7}<%= 7*7 %>",
    "../../../etc/passwd",
    "\x1b]0;title\x07\x1b[2J",
    "\u202etxt.exe",
    "\x00",
    "\ud800",
    "[" * 2000,
    "a" * 70_000,
]
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**63, 10**30, 253_402_300_799_000_000_000, START_MS * 10**6])
)
TEXTS = st.text(max_size=20) | st.sampled_from(PAYLOADS)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    *("trace_id", "span_id", "parent_span_id", "name", "start_time_unix_nano", "end_time_unix_nano"),
    *("events", "status", "attributes", "links"),
]
KNOWN_ATTRIBUTES = [
    *("mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.spanType", "mlflow.chat.tokenUsage", "mlflow.llm.cost"),
    *("gen_ai.usage.input_tokens", "llm.token_count.total", "gen_ai.request.model"),
]
ATTRIBUTES = st.dictionaries(st.sampled_from(KNOWN_ATTRIBUTES) | TEXTS, ANYTHING | ANYTHING.map(json.dumps), max_size=5)
SPANS = st.lists(
    st.builds(
        lambda index, attributes, changes: span_json(1, index, attributes=attributes) | changes,
        st.integers(1, 5),
        ATTRIBUTES,
        st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=2),
    ),
    max_size=4,
)
INFOS = st.fixed_dictionaries(
    {
        "tags": st.dictionaries(TEXTS, TEXTS, max_size=3),
        "trace_metadata": st.dictionaries(
            st.sampled_from(["mlflow.trace.tokenUsage", "mlflow.trace.cost", "mlflow.trace.session"]) | TEXTS,
            TEXTS | ANYTHING.map(json.dumps),
            max_size=4,
        ),
        "execution_duration": ANYTHING,
        "request_preview": TEXTS | st.none(),
    }
)


@fuzzed
@given(info=INFOS, spans=SPANS)
def test_the_flattener_makes_a_row_of_the_table_or_raises_an_error(info: dict[str, Any], spans: list[Any]) -> None:
    known = {
        "trace_id": trace_id(1),
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "1"}},
        "request_time": "2026-01-01T05:00:00Z",
        "state": "OK",
    }
    try:
        row = flatten_parts(info | known, spans)
        arrow = conform(
            AGENT_TRACES, from_dicts(AGENT_TRACES, [row | {"created_at": datetime(2026, 2, 1, tzinfo=UTC)}])
        )
    except Exception as error:  # noqa: BLE001 - the caller puts a trace that raises any error into quarantine
        assert not isinstance(error, AssertionError | NameError | UnboundLocalError), "a fault of ours"
        return
    [found] = arrow.to_pylist()
    assert found["trace_id"] == trace_id(1)
    assert len(found["spans"]) == len(spans)
    assert found["duration_ms"] is None or 0 <= found["duration_ms"] < float("inf")


TOKENS = [
    *("status", "tags.", "metadata.`", "span.name", "span.attributes.x", "feedback.q", "timestamp_ms", "trace.text"),
    *("=", "!=", "<", ">=", "LIKE", "ILIKE", "RLIKE", "IN", "IS NULL", "AND", "OR", "(", ")", ",", "'", '"', "`", "%"),
    *("'OK'", "'(a+)+$'", "1e309", "-1", "'x' OR '1'='1'", "; DROP TABLE agent_traces", "--", "/*", "\\", "{{x}}"),
]
FILTERS = st.lists(st.sampled_from(TOKENS) | TEXTS, max_size=8).map(" ".join) | st.builds(
    "{} {} {}".format,
    st.sampled_from(["status", "name", "tags.a", "span.type", "feedback.q", "execution_time_ms", "metadata.x"]),
    st.sampled_from(["=", "!=", "LIKE", "ILIKE", "RLIKE", "IN", ">"]),
    st.sampled_from(["'OK'", "5", "('a', 'b')", "'%x_'", "'[a-z]+'"]) | TEXTS.map(repr),
)


@fuzzed
@given(text=FILTERS)
def test_a_filter_is_translated_or_refused_in_one_line(text: str, spark: SparkResource) -> None:
    assert spark.session  # columns need one
    try:
        parse_filter(text)
        matches(text)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def fuzzed_store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("fuzzed")
    shutil.copytree(empty_store, folder / "store")
    store = Store.open(folder / "store" / "mlflow.db")
    store.log(1)
    store.log(2)
    return store


CONTENTS = st.lists(
    SPANS.filter(bool).map(lambda spans: json.dumps(spans[0])) | TEXTS,
    min_size=1,
    max_size=3,
)


@fuzzed
@given(contents=CONTENTS)
def test_each_source_returns_every_trace_once_whatever_its_spans_are(contents: list[str], fuzzed_store: Store) -> None:
    fuzzed_store.store_spans(1, *map(encodable, contents))
    tracking = TrackingResource(tracking_uri=fuzzed_store.uri)
    names = tracking.experiment_names()
    with opened(fuzzed_store.uri) as database:
        for source in (MlflowSource(tracking, names), MlflowSqlSource(database, names, fuzzed_store.uri)):
            found = sorted(map(id_of, (trace for batch in source.read(HOUR) for trace in batch)))
            assert found == [trace_id(1), trace_id(2)]


def id_of(trace: AnyTrace) -> str:
    if isinstance(trace, UnreadableTrace):
        return trace.trace_id
    return trace.row["trace_id"] if isinstance(trace, FlatTrace) else trace.info.trace_id
