"""Filters against MLflow's own search: they must find the same traces in the archive, or be refused by both."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Expectation, Feedback, IssueReference, Span, TraceInfo, TraceState
from mlflow.entities.model_registry import PromptVersion
from mlflow.entities.trace_location import TraceLocation
from mlflow.tracing.client import TracingClient
from pyspark.sql import DataFrame, SparkSession

from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.filters import Condition, matches, parse_filter
from monitoring_pipeline.traces.flatten import flatten

START_MS = 1_767_225_600_000  # 2026-01-01T00:00Z
LIKE_A_TRACE: Any = {"info": "", "data": {"spans": ["NaN"]}}
HUMAN = AssessmentSource(source_type="HUMAN", source_id="ada")

# Each trace starts a minute after the one before.
TRACES: list[dict[str, Any]] = [
    {"tags": {"environment": "production", "mlflow.traceName": "my_app"}, "duration_ms": 120},
    {"tags": {"environment": "Production", "mlflow.traceName": "My_App"}, "duration_ms": 5000},
    {"tags": {"environment": "staging", "mlflow.traceName": "my_app_function"}, "duration_ms": 5001},
    {"tags": {"mlflow.traceName": "myXapp"}, "duration_ms": 0, "state": TraceState.ERROR},
    {
        "state": TraceState.IN_PROGRESS,
        "duration_ms": None,
        "tags": {"environment": "production"},
        "spans": [{"name": "only", "duration_ms": None}],
    },
    {"state": TraceState.STATE_UNSPECIFIED, "duration_ms": 7},
    {"tags": {"a.b c": "it's", "percent": "100%", "quote": 'say "hi"'}, "client_request_id": "request-1"},
    {"tags": {"a.b c": "its", "percent": "100x", "underscore": "a_b"}, "client_request_id": "REQUEST-1"},
    {"tags": {"underscore": "axb", "backslash": "a\\b"}, "client_request_id": "request_1"},
    {"tags": {"underscore": "a\nb", "empty": "", "accent": "Éa"}},
    {"tags": {"accent": "éA", "backslash": "a\\\\b", "eval_candidate": "error_case"}, "state": TraceState.ERROR},
    {"metadata": {"mlflow.user": "alice@company.com", "mlflow.trace.user": "alice", "mlflow.trace.session": "s1"}},
    {"metadata": {"mlflow.trace.user": "Bob", "mlflow.trace.session": "S1", "mlflow.sourceRun": "run-a"}},
    {"metadata": {"mlflow.sourceRun": "run-b", "mlflow.trace.tokenUsage": '{"input_tokens": 3, "output_tokens": 4}'}},
    {"metadata": {"mlflow.trace.cost": '{"input_cost": 0.5, "total_cost": 1}'}},
    {
        "spans": [
            {"name": "root", "span_type": "AGENT", "inputs": {"question": "Where is my order?"}},
            {"name": "llm", "span_type": "LLM", "attributes": {"model": "gpt-4o", "tries": 2, "stream": True}},
            {"name": "llm", "span_type": "CHAT_MODEL", "status": "ERROR", "attributes": {"model": "GPT-4o"}},
        ]
    },
    {
        "spans": [
            {"name": "root", "span_type": "agent", "outputs": 'He said "no" \\ and left\nthe café 😀'},
            {"name": "LLM", "span_type": "LLM", "status": "UNSET", "attributes": {"model.name": "claude"}},
        ],
        "tags": {"note": "model gpt-4o is only named in a tag"},
    },
    {
        "spans": [
            {"name": "root", "span_type": "CHAIN", "inputs": "caf\\u00e9 spelled as an escape"},
            {"name": "early", "span_type": "TOOL", "start_ms": -60_000},
            {"name": 'odd }, {"trace_id": "x", "span_id": "y", "parent_span_id": null', "span_type": "TOOL"},
            {"name": "linked", "links": 2, "events": [{"trace_id": "t", "span_id": "s"}], "attributes": {"last": "end"}}
        ]
    },
    {"spans": []},
    {
        "spans": [{"name": "tool", "events": [{"ratio": float("nan")}]}],
        "assessments": [Feedback(name="good", value=LIKE_A_TRACE), Feedback(name="good", value="no")],
    },
    {"assessments": [Feedback(name="good", value=True, source=HUMAN), Expectation(name="good", value=False)]},
    {"assessments": [Feedback(name="good", value="yes"), Feedback(name="good", value=False)]},
    {"assessments": [Feedback(name="score", value=0.75), Expectation(name="facts", value=["a", "b"])]},
    {"assessments": [Feedback(name="score", value=5), Feedback(name="verdict", value="true")]},
    {"assessments": [Feedback(name="score", value="5"), Expectation(name="answer", value="Caf\u00e9 \\ \"42\"")]},
    {"assessments": [Feedback(name="score", value=-1e-3), Expectation(name="answer", value=42)]},
    {"assessments": [Feedback(name="good", error=ValueError("judge failed")), Feedback(name="score", value={"n": 1})]},
    {"assessments": [Feedback(name="a.b c", value="No"), IssueReference(issue_id="issue-1", issue_name="slow")]},
    {"prompts": [PromptVersion("greeting", 1, "Hi"), PromptVersion('odd "name"', 2, "Hi")]},
    {"prompts": [PromptVersion("greeting", 12, "Hi")]},
]  # fmt: skip

VALID = [
    # from the documents
    "attributes.status = 'OK'",
    "attributes.status = 'ERROR'",
    f"attributes.timestamp_ms > {START_MS + 300_000}",
    "attributes.execution_time_ms > 5000",
    "tags.environment = 'production'",
    "tags.`mlflow.traceName` = 'my_app_function'",
    "metadata.`mlflow.user` = 'alice@company.com'",
    "\n attributes.status = 'OK' AND\n tags.environment = 'production' AND\n attributes.execution_time_ms < 2000\n ",
    f"attributes.timestamp_ms >= {START_MS + 60_000} AND attributes.timestamp_ms < {START_MS + 240_000}",
    "tags.`mlflow.traceId` = 'tr-1'",
    "tags.eval_candidate IS NOT NULL",
    "tags.eval_candidate = 'error_case'",
    # attributes
    "status != 'OK'",
    "trace.status IN ('OK', 'IN_PROGRESS')",
    "status NOT IN ('OK')",
    "status LIKE 'E%'",
    "status like 'e%'",
    "status ILIKE 'e%'",
    "status RLIKE '^(ERR|IN_)'",
    "status = 'STATE_UNSPECIFIED'",
    f"timestamp = {START_MS}",
    f"timestamp_ms != {START_MS}",
    f"timestamp_ms <= '{START_MS + 120_000}'",
    "timestamp_ms < 'yesterday'",
    "timestamp_ms > 'yesterday'",
    "execution_time_ms = 0",
    "execution_time >= 5000.5",
    "execution_time_ms != 120",
    "execution_time_ms != 'long'",
    "execution_time_ms = ' 5e3 '",
    f"end_time_ms <= {START_MS + 120}",
    f"end_time > {START_MS + 241_000}",
    f"end_time_ms = {START_MS + 240_000}",
    f"end_time_ms > '{START_MS}'",
    f"end_time_ms < '{START_MS}'",
    "request_id = 'tr-00000000000000000000000000000003'",
    "trace.request_id IN ('tr-00000000000000000000000000000003', 'tr-00000000000000000000000000000004')",
    "request_id LIKE '%_1'",
    "client_request_id = 'request-1'",
    "client_request_id != 'request-1'",
    "client_request_id LIKE 'request_1'",
    "client_request_id ILIKE 'request_1'",
    "client_request_id NOT IN ('request-1', 'x')",
    # names, tags, metadata
    "name = 'my_app'",
    "name != 'my_app'",
    "name LIKE 'my_app'",
    "name ILIKE 'MY_APP%'",
    "name RLIKE '^my.app$'",
    "name IS NULL",
    "trace.name IS NOT NULL",
    "tags.environment != 'production'",
    "tags.environment IS NULL",
    "tag.environment LIKE '%rod%'",
    "tags.environment ILIKE 'PROD%'",
    "tags.environment RLIKE 'ing$'",
    "tags.environment RLIKE '['",
    "tags.`a.b c` = \"it's\"",
    "tags.`a.b c` LIKE 'it%'",
    "tags.\"a.b c\" = 'its'",
    "tags.percent = '100%'",
    "tags.percent LIKE '100%'",
    "tags.percent LIKE '100\\%'",
    "tags.quote LIKE '%\"hi\"'",
    "tags.underscore LIKE 'a_b'",
    "tags.underscore RLIKE 'a.b'",
    "tags.underscore LIKE 'a\\_b'",
    "tags.backslash = 'a\\b'",
    "tags.backslash LIKE 'a\\b'",
    "tags.backslash LIKE 'a\\\\b'",
    "tags.empty = ''",
    "tags.empty IS NOT NULL",
    "tags.accent ILIKE 'ÉA'",
    "tags.accent LIKE '_a'",
    "tags.name = 'my_app'",
    "metadata.`mlflow.trace.session` = 's1'",
    "metadata.`mlflow.trace.session` ILIKE 's_'",
    "request_metadata.`mlflow.trace.session` IS NOT NULL",
    "metadata.`mlflow.trace.user` != 'alice'",
    "metadata.`mlflow.trace.user` RLIKE '(?i)^b'",
    "metadata.`mlflow.trace.user` IS NULL",
    "metadata.`mlflow.trace.tokenUsage` = '{\"input_tokens\": 3, \"output_tokens\": 4}'",
    "metadata.`mlflow.trace.tokenUsage` = '{\"output_tokens\": 4, \"input_tokens\": 3}'",
    "metadata.`mlflow.trace.tokenUsage` IS NULL",
    "metadata.`mlflow.trace.cost` != '{\"input_cost\": 0.5, \"total_cost\": 1}'",
    "metadata.`mlflow.trace.cost` = '{\"input_cost\": 0.5, \"total_cost\": 1.0}'",
    "run_id = 'run-a'",
    "run_id = 'run-a' AND attribute.run_id = 'run-b'",
    "run_id = ''",
    "run_id != 'run-a'",
    "run_id LIKE 'run%'",
    "run_id IS NULL",
    # spans
    "span.name = 'llm'",
    "span.name != 'root'",
    "span.name ILIKE 'llm'",
    "span.name IN ('early', 'linked')",
    "span.type = 'AGENT'",
    "span.type ILIKE 'agent'",
    "span.type NOT IN ('UNKNOWN', 'LLM')",
    "span.type RLIKE '^(CHAT|LLM)'",
    "span.status = 'ERROR'",
    "span.status = 'UNSET'",
    "span.name = 'llm' AND span.type = 'LLM' AND span.status = 'OK'",
    "span.name = 'llm' AND span.type = 'LLM' AND span.status = 'ERROR'",
    "span.name = 'llm' AND status = 'OK' AND span.status = 'ERROR'",
    "span.attributes.model LIKE '%gpt%'",
    "span.attributes.model ILIKE '%GPT-4O%'",
    "span.attributes.model LIKE '%gpt%' AND span.status = 'ERROR'",
    "span.attributes.model LIKE '%claude%'",
    "span.attributes.`model.name` LIKE '%claude%'",
    "span.attributes.`model.name` RLIKE '^claude$'",
    "span.attributes.model RLIKE '^gpt-4o$'",
    "span.attributes.model RLIKE 'pt-4'",
    "span.attributes.model RLIKE '^pt-4'",
    "span.attributes.tries LIKE '%2%'",
    "span.attributes.last LIKE '%end%'",
    "span.attributes.last LIKE '%end%' AND span.name = 'linked'",
    "span.attributes.last LIKE '%end%' AND span.name = 'early'",
    "span.attributes.last = 'end'",
    "span.attributes.last != 'end' AND span.name = 'linked'",
    "span.content LIKE '%Where is my order%'",
    "span.content LIKE '{\"trace_id\": %]}'",
    "span.content LIKE '%\"span_id\": %\"span_id\": %\"span_id\": %'",
    "span.content ILIKE '%WHERE IS my order%' AND span.type = 'AGENT'",
    "span.content ILIKE '%WHERE IS my order%' AND span.type = 'LLM'",
    "trace.text LIKE '%café%'",
    "trace.text LIKE '%caf_ 😀%'",
    "trace.text LIKE '%caf_ _%'",
    "trace.text LIKE '%u00e9%'",
    "trace.text LIKE '%\\\\n%'",
    "trace.text LIKE '%\\\\\"no\\\\\\\\\\\\\"%'",
    "trace.text LIKE '%only named in a tag%'",
    "trace.text LIKE '%'",
    f"span.name = 'early' AND timestamp_ms > {START_MS}",
    f"span.name = 'early' AND timestamp_ms > {START_MS + 16.5 * 60_000}",
    f"span.name = 'early' AND timestamp_ms > {START_MS} AND timestamp_ms >= {START_MS + 15 * 60_000 + 10_000}",
    f"span.name = 'early' AND timestamp_ms > {START_MS} AND timestamp_ms >= {START_MS + 15 * 60_000 + 10_001}",
    # assessments
    "feedback.good = 'true'",
    "feedback.good = 'false'",
    "feedback.good = 'yes'",
    "feedback.good = 'no'",
    "feedback.good LIKE '%NaN%'",
    "trace.text LIKE '%\"ratio\": NaN%'",
    "feedback.good = 'null'",
    "feedback.good != 'yes'",
    "feedback.good LIKE '%e%'",
    "feedback.good RLIKE '^\"y'",
    "feedback.good ILIKE '\"YES\"'",
    "feedback.good IS NULL",
    "feedback.good IS NOT NULL",
    "feedback.overridden = 'old'",
    "feedback.overridden = 'new'",
    "feedback.verdict = 'true'",
    "feedback.score > 0.5",
    "feedback.score >= 5",
    "feedback.score < 0",
    "feedback.score <= 0.75",
    "feedback.score = '5'",
    "feedback.score != '5'",
    "feedback.`a.b c` = 'No'",
    "feedback.`a.b c` != 'no'",
    "expectation.good = 'false'",
    "expectation.answer LIKE '%42%'",
    "expectation.answer = 'Café \\ \"42\"'",
    "expectation.answer > 41",
    "expectation.facts LIKE '%\"b\"]'",
    "expectation.facts = '[\"a\", \"b\"]'",
    "expectation.answer IS NOT NULL AND feedback.score IS NOT NULL",
    "issue.id = 'issue-1'",
    "issue.id = 'issue-2'",
    "issue.name = 'my_app'",
    "prompt = 'greeting/1'",
    "prompt = 'odd \"name\"/2'",
]  # fmt: skip

INVALID = [
    "status",
    "status = OK",
    "status = 5",
    "status > 'OK'",
    "status = 'OK' OR status = 'ERROR'",
    "status = 'OK'; DROP TABLE trace_info",
    "status IS NULL",
    "status IN ('OK', 5)",
    "status IN (OK)",
    "status IN ()",
    "status = ('OK')",
    "status NOT LIKE 'O%'",
    "nonsense = 'x'",
    "colour.x = 'x'",
    "timestamp_ms LIKE '1%'",
    "timestamp_ms IN ('1')",
    "timestamp_ms > 99999999999999999999",
    "timestamp_ms > '5' AND span.name = 'root'",
    "execution_time_ms IS NULL",
    "name IN ('my_app')",
    "tags.environment = production",
    "tags.environment > 'a'",
    "tags.environment IN ('a', 'b')",
    "tags.environment = ('a', 'b')",
    "metadata.x IN ('a')",
    "metadata.`mlflow.trace.cost` LIKE '%'",
    "run_id IN ('run-a')",
    "prompt = 'greeting'",
    "prompt LIKE 'greeting/%'",
    "prompt IS NULL",
    "span.duration = '5'",
    "span.name > 'a'",
    "span.name like 'r%'",
    "span.name IS NULL",
    "span.attributes. = 'x'",
    "span.attributes.model IN ('gpt')",
    "span.content = 'x'",
    "text LIKE '%x%'",
    "trace.text = 'x'",
    "trace.text RLIKE 'x'",
    "feedback.good IN ('a')",
    "feedback.good = 5",
    "feedback.good > 'a'",
    "feedback.score > 99999999999999999999",
    "issue.title = 'slow'",
    "issue.id != 'issue-1'",
    "   ",
]

PYTHON_REGEX = [r"tags.percent RLIKE '(?<=1)0'", r"name RLIKE '(a)\1'", "name RLIKE 'a(?!b)'", r"name RLIKE 'a\Z'"]


@dataclasses.dataclass
class Searches:
    client: MlflowClient
    experiment_id: str
    archive: DataFrame

    def of_mlflow(self, filter_string: str) -> list[str]:
        found = self.client.search_traces(
            locations=[self.experiment_id], filter_string=filter_string, max_results=500, include_spans=False
        )
        return sorted(trace.info.trace_id for trace in found)

    def of_archive(self, filter_string: str | None) -> list[str]:
        found = self.archive.where(matches(filter_string)).select("trace_id").collect()
        return sorted(row.trace_id for row in found)


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    from pysail.spark import SparkConnectServer

    server = SparkConnectServer()
    server.start()
    address = server.listening_address
    assert address is not None
    session = SparkSession.builder.remote(f"sc://{address[0]}:{address[1]}").create()
    session.conf.set("spark.sql.session.timeZone", "UTC")
    yield session
    session.stop()
    server.stop()


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory, spark: SparkSession) -> Searches:
    folder = tmp_path_factory.mktemp("filters")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment_id = client.create_experiment("filters", artifact_location=(folder / "artifacts").as_uri())
    log_traces(TracingClient(uri), experiment_id)
    traces = {
        trace.info.trace_id: trace
        for include_spans in (False, True)  # with spans, MLflow leaves out a trace without any
        for trace in client.search_traces(locations=[experiment_id], max_results=500, include_spans=include_spans)
    }
    assert len(traces) == len(TRACES)
    rows = [flatten(trace, datetime(2026, 2, 1, tzinfo=UTC)) for trace in traces.values()]
    return Searches(client, experiment_id, delta_table(spark, folder / "agent_traces", rows))


def delta_table(spark: SparkSession, folder: Path, rows: list[dict[str, Any]]) -> DataFrame:
    dated = [row | {"date": row["trace_hour"].date()} for row in rows]
    deltalake.write_deltalake(str(folder), pa.Table.from_pylist(dated, schema=AGENT_TRACES.schema))
    return spark.read.format("delta").load(str(folder))


def log_traces(client: TracingClient, experiment_id: str) -> None:
    for number, trace in enumerate(TRACES):
        trace_id = f"tr-{number:032x}"
        prompts = trace.get("prompts", [])
        tags = trace.get("tags", {})
        if prompts:
            linked = [{"name": prompt.name, "version": str(prompt.version)} for prompt in prompts]
            tags = {**tags, "mlflow.linkedPrompts": json.dumps(linked)}
        info = TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(experiment_id),
            request_time=START_MS + number * 60_000,
            state=trace.get("state", TraceState.OK),
            execution_duration=trace.get("duration_ms", 1000),
            client_request_id=trace.get("client_request_id"),
            tags=tags,
            trace_metadata=trace.get("metadata", {}),
        )
        client.start_trace(info)
        spans = [span(number, index, **values) for index, values in enumerate(trace.get("spans", [{"name": "only"}]))]
        if spans:
            client.log_spans(experiment_id, spans)
        client.store.link_prompts_to_trace(trace_id, prompts)
        for assessment in trace.get("assessments", []):
            client.log_assessment(trace_id, assessment)
    old = client.log_assessment("tr-" + "0" * 32, Feedback(name="overridden", value="old"))
    new = Feedback(name="overridden", value="new", overrides=old.assessment_id)
    client.log_assessment("tr-" + "0" * 32, new)


def span(
    trace_number: int,
    index: int,
    name: str,
    span_type: str = "UNKNOWN",
    status: str = "OK",
    attributes: dict[str, Any] | None = None,
    start_ms: int = 0,
    duration_ms: int | None = 5,
    links: int = 0,
    events: list[dict[str, Any]] | None = None,
    **inputs_and_outputs: Any,
) -> Span:
    start_ns = (START_MS + trace_number * 60_000 + start_ms) * 1_000_000 + index
    values = {
        "mlflow.traceRequestId": f"tr-{trace_number:032x}",
        "mlflow.spanType": span_type,
        **{f"mlflow.span{key.capitalize()}": value for key, value in inputs_and_outputs.items()},
        **(attributes or {}),
    }
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(trace_number.to_bytes(16, "big")).decode(),
            "span_id": base64.b64encode((trace_number * 100 + index + 1).to_bytes(8, "big")).decode(),
            "parent_span_id": base64.b64encode((trace_number * 100 + 1).to_bytes(8, "big")).decode() if index else None,
            "name": name,
            "start_time_unix_nano": start_ns,
            "end_time_unix_nano": None if duration_ms is None else start_ns + duration_ms * 1_000_000,
            "events": [{"name": "e", "time_unix_nano": start_ns, "attributes": event} for event in events or []],
            "status": {"code": f"STATUS_CODE_{status}", "message": ""},
            "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()},
            "links": [{"trace_id": f"tr-{n:032x}", "span_id": f"{n:016x}", "attributes": {}} for n in range(links)],
        }
    )


@pytest.mark.parametrize("filter_string", VALID)
def test_the_archive_finds_the_traces_that_mlflow_finds(searches: Searches, filter_string: str) -> None:
    assert searches.of_archive(filter_string) == searches.of_mlflow(filter_string)


def test_most_of_these_filters_match_only_some_traces(searches: Searches) -> None:
    selective = [f for f in VALID if 0 < len(searches.of_archive(f)) < len(TRACES)]
    assert len(selective) > 0.8 * len(VALID)


@pytest.mark.parametrize("filter_string", INVALID)
def test_filters_that_mlflow_refuses_are_refused(searches: Searches, filter_string: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - MLflow refuses some filters by crashing
        searches.of_mlflow(filter_string)
    with pytest.raises(ValueError) as refusal:
        matches(filter_string)
    assert repr(filter_string) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("filter_string", PYTHON_REGEX)
def test_a_regex_that_only_python_knows_is_refused(filter_string: str) -> None:
    with pytest.raises(ValueError, match="look-around"):
        parse_filter(filter_string)


@pytest.mark.parametrize("filter_string", [None, ""])
def test_no_filter_matches_every_trace(searches: Searches, filter_string: str | None) -> None:
    assert len(searches.of_archive(filter_string)) == len(TRACES)


def test_traces_that_do_not_match_are_the_rest(searches: Searches) -> None:
    for filter_string in VALID:  # so the column is never null, and Sail can negate it over a Delta table
        rest = searches.archive.where(~matches(filter_string)).count()
        assert rest + len(searches.of_archive(filter_string)) == len(TRACES), filter_string


def test_a_filter_combines_with_a_window(searches: Searches) -> None:
    in_the_hour = "trace_hour >= '2026-01-01T00:00:00Z' AND date = '2026-01-01'"
    found = searches.archive.where(in_the_hour).where(matches("span.name = 'llm' AND feedback.good IS NULL"))
    assert [row.trace_id for row in found.collect()] == searches.of_mlflow("span.name = 'llm'")


def test_conditions_are_resolved_as_mlflow_resolves_them() -> None:
    assert parse_filter("") == []
    assert parse_filter("name like 'a%' AND timestamp >= 5 AND status IN ('OK')") == [
        Condition("tag", "mlflow.traceName", "LIKE", "a%"),
        Condition("attribute", "timestamp_ms", ">=", 5),
        Condition("attribute", "status", "IN", ("OK",)),
    ]
