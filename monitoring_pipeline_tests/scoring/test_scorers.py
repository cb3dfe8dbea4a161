"""The shipped scorers: each of their cases, and their results on the recorded conversations."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Feedback, Span, Trace, TraceData, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation
from mlflow.genai import evaluate
from mlflow.genai.scorers import Scorer
from mlflow.tracking._tracking_service import utils as tracking_utils

from monitoring_pipeline.scoring import scorers
from monitoring_pipeline.scoring.limits import Limits
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.runner import PendingTrace, assess
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings
from monitoring_pipeline.windows import from_milliseconds
from monitoring_pipeline_tests.scoring.made import made_trace
from monitoring_pipeline_tests.sources.stores import START, span_json, trace_id

Stage = tuple[str, str, float | None, str | None]  # name, type, seconds (None: unfinished), error
MakeTrace = Callable[..., Trace]

SHIPPED = [
    scorers.response_quality,
    scorers.tool_errors,
    scorers.tool_selection_accuracy,
    scorers.stage_latency,
]


@pytest.fixture
def make_trace(load_tau: ModuleType) -> MakeTrace:
    """A function that makes a trace of the given stages."""

    def make(*stages: Stage) -> Trace:
        builder = load_tau.TraceBuilder(("made",), 0)
        spans = [
            builder.span(index, None, name, kind, 0, None if seconds is None else int(seconds * 1e9), {}, {}, error)
            for index, (name, kind, seconds, error) in enumerate(stages)
        ]
        location = TraceLocation.from_experiment_id("0")
        info = TraceInfo(builder.trace_id, location, request_time=0, state=TraceState.OK)
        return Trace(info, TraceData(spans=spans))

    return make


def trace_of(*stages: tuple[Any, ...]) -> Trace:
    """A trace of spans: name, type, start in seconds, inputs, outputs and, optionally, attributes."""
    spans = []
    for index, (name, kind, second, inputs, outputs, *more) in enumerate(stages, 1):
        values = {"mlflow.spanType": kind, "mlflow.spanInputs": inputs, "mlflow.spanOutputs": outputs, **dict(*more)}
        attributes = {key: json.dumps(value) for key, value in values.items()}
        started = START + timedelta(seconds=second)
        spans.append(Span.from_dict(span_json(1, index, name=name, started=started, attributes=attributes)))
    info = TraceInfo(trace_id(1), TraceLocation.from_experiment_id("0"), request_time=0, state=TraceState.OK)
    return Trace(info, TraceData(spans=spans))


def feedback(scorer: Scorer, **arguments: Any) -> Feedback:
    result = scorer.run(**arguments)
    assert isinstance(result, Feedback)
    return result


def bind(name: str, params: dict[str, Any]) -> Scorer:
    """The shipped scorer with parameters from settings."""
    (loaded,) = load_scorers([ScorerSettings(name=name, scorer=f"{SHIPPED_SCORERS}:{name}", params=params)])
    return loaded.scorer


def score_in_production(scorer: Scorer, trace: Trace) -> float | None:
    """The score by our runner; None if the scorer does not apply."""
    configured = ConfiguredScorer(scorer.name, scorer, "0" * 16, 1.0, None)
    started = from_milliseconds(trace.info.request_time)
    row, _ = assess(
        configured, PendingTrace(trace.info.trace_id, started, "1", (trace.to_json(),)), "run", Meter(Limits())
    )
    assert row.get("error_code") is None
    return row.get("score")


@pytest.mark.parametrize(
    ("outputs", "score"),
    [
        (None, 0.0),
        ("", 0.0),
        (" \n ", 0.0),
        ({}, 0.0),
        ({"content": None}, 0.0),
        ("fine", 0.5),
        ("0123456789", 1.0),
        ("an Error occurred in it", 0.7),
        ("error", 0.2),
        ({"content": "long enough text"}, 1.0),
        ({"response": "long enough text"}, 1.0),
        ({"unknown": "long enough text"}, 1.0),
        ({"choices": [{"message": {"content": "an error occurred"}}]}, 0.7),
        ({"choices": [{"message": None}]}, 0.0),
        ({"result": "long enough text", "error": None, "errors": []}, 1.0),
        ({"error": "too many requests"}, 0.7),
        (
            {"messages": [{"role": "user", "content": "an error?"}, {"role": "assistant", "content": "none at all"}]},
            1.0,
        ),
        (["a", "list", "of", "words"], 1.0),
        (7, 0.5),
    ],
)
def test_response_quality(outputs: Any, score: float) -> None:
    assert feedback(scorers.response_quality, outputs=outputs).value == score


def test_response_quality_names_the_problem() -> None:
    assert feedback(scorers.response_quality, outputs="error").rationale == (
        "5 characters, fewer than 10; contains 'error'"
    )


def test_response_quality_accepts_another_length_and_keyword() -> None:
    bound = bind("response_quality", {"min_characters": 9, "error_keyword": "SORRY"})
    assert feedback(bound, outputs="Sorry, no").value == 0.7


@pytest.mark.parametrize(
    ("errors", "score"), [((None,), 0.0), (("e",), 1.0), ((None, "e", "e", None), 0.5), ((None, None, "e"), 1 / 3)]
)
def test_tool_errors_is_the_share_of_failed_tools(
    errors: tuple[str | None, ...], score: float, make_trace: MakeTrace
) -> None:
    trace = make_trace(*(("search", "TOOL", 1.0, error) for error in errors))
    assert feedback(scorers.tool_errors, trace=trace).value == pytest.approx(score)


def test_tool_errors_names_each_failed_tool_once(make_trace: MakeTrace) -> None:
    failed = [("book", "TOOL", 1.0, "e"), ("book", "TOOL", 1.0, "e"), ("ask", "TOOL", 1.0, "e")]
    rationale = feedback(scorers.tool_errors, trace=make_trace(*failed, ("pay", "TOOL", 1.0, None))).rationale
    assert rationale == "3 of 4 tool calls failed: ask (status ERROR), book (status ERROR)"


def test_tool_errors_reads_the_outputs_of_tools() -> None:
    answered = made_trace(1)
    for index, outputs in enumerate([{"isError": True, "content": []}, {"rows": []}], 2):
        attributes = {"mlflow.spanType": '"TOOL"', "mlflow.spanOutputs": json.dumps(outputs)}
        answered.data.spans.append(Span.from_dict(span_json(1, index, parent=1, started=START, attributes=attributes)))
    found = feedback(scorers.tool_errors, trace=answered)
    assert (found.value, found.rationale) == (0.5, "1 of 2 tool calls failed: span 2 (output has isError: true)")


@pytest.mark.parametrize("stages", [[], [("model", "CHAT_MODEL", 1.0, "failed")]])
def test_tool_errors_does_not_apply_without_tools(stages: list[Stage], make_trace: MakeTrace) -> None:
    assert scorers.tool_errors.run(trace=make_trace(*stages)) is None


@pytest.mark.parametrize(
    ("called", "expected", "score"),
    [
        ([], [], 1.0),
        (["a"], [], 0.0),
        ([], ["a"], 0.0),
        (["a", "b"], ["b", "a"], 1.0),
        (["a", "a"], ["a"], 0.5),
        (["a", "b"], ["b", "c"], 1 / 3),
    ],
)
def test_tool_selection_accuracy_is_the_overlap_of_the_tools(
    called: list[str], expected: list[str], score: float, make_trace: MakeTrace
) -> None:
    trace = make_trace(("root", "AGENT", 1.0, None), *((name, "TOOL", 1.0, None) for name in called))
    result = feedback(scorers.tool_selection_accuracy, trace=trace, expectations={"expected_tools": expected})
    assert result.value == pytest.approx(score)


def test_tool_selection_accuracy_names_the_difference(make_trace: MakeTrace) -> None:
    trace = make_trace(("a", "TOOL", 1.0, None), ("b", "TOOL", 1.0, None))
    result = feedback(scorers.tool_selection_accuracy, trace=trace, expectations={"expected_tools": ["b", "c"]})
    assert result.rationale == "missing: c; unexpected: a"


@pytest.mark.parametrize(
    ("called", "expected", "score"),
    [
        ("", "", 1.0),
        ("a", "", 0.0),
        ("", "a", 0.0),
        ("abc", "abc", 1.0),
        ("cba", "abc", 1 / 3),
        ("axbyc", "abc", 3 / 5),
        ("ab", "abab", 2 / 4),
        ("xaby", "bay", 2 / 4),
    ],
)
def test_the_order_of_tools(called: str, expected: str, score: float, make_trace: MakeTrace) -> None:
    trace = make_trace(*((name, "TOOL", 1.0, None) for name in called))
    bound = bind("tool_selection_accuracy", {"mode": "order"})
    assert feedback(bound, trace=trace, expectations={"expected_tools": [*expected]}).value == pytest.approx(score)


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_the_common_order_is_the_longest_common_subsequence(called: str, expected: str) -> None:
    subsequences = {"".join(kept) for size in range(len(called) + 1) for kept in itertools.combinations(called, size)}
    common = max(
        len(kept)
        for size in range(len(expected) + 1)
        for kept in itertools.combinations(expected, size)
        if "".join(kept) in subsequences
    )
    trace = trace_of(*((name, "TOOL", number, {}, None) for number, name in enumerate(called)))
    bound = bind("tool_selection_accuracy", {"mode": "order"})
    found = feedback(bound, trace=trace, expectations={"expected_tools": [*expected]}).value
    assert found == pytest.approx(common / max(len(called), len(expected)) if called or expected else 1.0)


def test_tools_are_in_the_order_in_which_they_started() -> None:
    trace = trace_of(("late", "TOOL", 2, {}, None), ("early", "TOOL", 1, {}, None))
    bound = bind("tool_selection_accuracy", {"mode": "order"})
    assert feedback(bound, trace=trace, expectations={"expected_tools": ["early", "late"]}).value == 1.0


@pytest.mark.parametrize(
    ("expected", "score", "rationale"),
    [
        ([{"name": "book", "arguments": {"id": 1}}, {"name": "book", "arguments": {"id": 2}}], 1.0, "exactly"),
        ([{"name": "book"}, {"name": "book", "arguments": {"id": 1}}], 1.0, "exactly"),
        ([{"name": "book", "arguments": {"id": 2}}], 1 / 2, 'unexpected: book({"id": 1})'),
        ([{"name": "book", "arguments": {"id": 3}}], 0.0, 'missing: book({"id": 3}); unexpected: book({"id": 1})'),
        ([{"name": "pay"}], 0.0, "missing: pay; unexpected: book"),
        ([], 0.0, "unexpected: book"),
    ],
)
def test_the_arguments_of_tools(expected: list[dict[str, Any]], score: float, rationale: str) -> None:
    trace = trace_of(("book", "TOOL", 1, {"id": 1}, None), ("book", "TOOL", 2, {"id": 2}, None))
    bound = bind("tool_selection_accuracy", {"mode": "arguments"})
    found = feedback(bound, trace=trace, expectations={"expected_tool_calls": expected})
    assert found.value == pytest.approx(score)
    assert (found.rationale or "").startswith(rationale)


def test_another_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="mode = 'sets': must be one of set, order, arguments"):
        bind("tool_selection_accuracy", {"mode": "sets"}).run(trace=trace_of(), expectations={"expected_tools": []})


@pytest.mark.parametrize("mode", ["order", "arguments"])
def test_a_mode_does_not_apply_without_its_expectation(mode: str) -> None:
    other = {"expected_tools" if mode == "arguments" else "expected_tool_calls": []}
    assert bind("tool_selection_accuracy", {"mode": mode}).run(trace=trace_of(), expectations=other) is None


@pytest.mark.parametrize(
    ("outputs", "expected", "is_right"),
    [
        ({"query_type": "growth"}, "growth", True),
        ({"query_type": "growth"}, "trend", False),
        ({"query_type": "growth"}, None, False),
        ("growth", "growth", True),
        ({"query_type": None}, None, True),
        ({"query_type": "none"}, None, True),
        ({"query_type": None}, "none", True),
        ({"other": "growth"}, "growth", False),
        (["growth"], "growth", False),
        (None, None, True),
    ],
)
def test_classifier_accuracy(outputs: Any, expected: str | None, is_right: bool) -> None:
    trace = trace_of(("agent", "AGENT", 0, {}, "growth"), ("classifier", "CHAIN", 1, {}, outputs))
    found = feedback(scorers.classifier_accuracy, trace=trace, expectations={"expected_query_type": expected})
    assert found.value is is_right


def test_classifier_accuracy_without_a_classifier_or_with_another_one() -> None:
    trace = trace_of(("router", "CHAIN", 1, {}, {"kind": "growth"}), ("router", "CHAIN", 2, {}, {"kind": "trend"}))
    none, trend = {"expected_query_type": None}, {"expected_query_type": "trend"}
    assert feedback(scorers.classifier_accuracy, trace=trace, expectations=none).value is True
    assert feedback(scorers.classifier_accuracy, trace=trace, expectations=trend).rationale == (
        "classified as None, expected trend"
    )
    bound = bind("classifier_accuracy", {"stage": "router", "attribute": "kind"})
    assert feedback(bound, trace=trace, expectations=trend).value is True  # the last one counts


def test_classifier_accuracy_reads_the_attribute_of_the_span() -> None:
    trace = trace_of(("classifier", "CHAIN", 1, {}, {"query_type": "a"}, {"query_type": "b"}))
    expectations = {"expected_query_type": "b"}
    assert feedback(scorers.classifier_accuracy, trace=trace, expectations=expectations).value is True


@pytest.mark.parametrize("expectations", [None, {}, {"expected_tools": []}])
def test_classifier_accuracy_does_not_apply_without_the_expectation(expectations: dict[str, Any] | None) -> None:
    assert scorers.classifier_accuracy.run(trace=trace_of(), expectations=expectations) is None


@pytest.mark.parametrize("expectations", [None, {}, {"expected_answer": "yes"}, {"expected_tools": None}])
def test_tool_selection_accuracy_does_not_apply_without_the_expectation(
    expectations: dict[str, Any] | None, make_trace: MakeTrace
) -> None:
    trace = make_trace(("a", "TOOL", 1.0, None))
    assert scorers.tool_selection_accuracy.run(trace=trace, expectations=expectations) is None


@pytest.mark.parametrize(
    ("stages", "value", "rationale"),
    [
        ([("t", "TOOL", 2.0, None)], True, "TOOL took 2000 ms of 2000 ms"),
        ([("t", "TOOL", 2.1, None)], False, "TOOL took 2100 ms of 2000 ms"),
        ([("t", "TOOL", 1.5, None), ("u", "TOOL", 1.5, None)], False, "TOOL took 3000 ms of 2000 ms"),
        ([("a", "AGENT", 9.0, None), ("r", "RETRIEVER", 0.5, None)], True, "AGENT took 9000 ms of 10000 ms"),
        ([("a", "AGENT", 9.0, None), ("r", "RETRIEVER", 1.1, None)], False, "RETRIEVER took 1100 ms of 1000 ms"),
        ([("a", "AGENT", 1.0, None), ("t", "TOOL", None, None)], True, "AGENT took 1000 ms of 10000 ms"),
    ],
)
def test_stage_latency_reports_the_worst_stage(
    stages: list[Stage], value: bool, rationale: str, make_trace: MakeTrace
) -> None:
    result = feedback(scorers.stage_latency, trace=make_trace(*stages))
    assert (result.value, result.rationale) == (value, rationale)


@pytest.mark.parametrize("stages", [[], [("x", "PARSER", 99.0, None)], [("t", "TOOL", None, None)]])
def test_stage_latency_does_not_apply_without_a_finished_stage_that_has_a_limit(
    stages: list[Stage], make_trace: MakeTrace
) -> None:
    assert scorers.stage_latency.run(trace=make_trace(*stages)) is None


def test_stage_latency_prefers_limits_of_names_to_limits_of_types(make_trace: MakeTrace) -> None:
    trace = make_trace(("slow", "TOOL", 3.0, None), ("quick", "TOOL", 0.5, None), ("quick", "TOOL", 0.4, None))
    both = bind("stage_latency", {"limits_ms": {"slow": 4000, "TOOL": 800}})
    assert feedback(both, trace=trace).rationale == "TOOL took 900 ms of 800 ms"
    names = bind("stage_latency", {"limits_ms": {"slow": 2000, "quick": 1000}})
    assert feedback(names, trace=trace).rationale == "slow took 3000 ms of 2000 ms"
    assert scorers.stage_latency_scorer is scorers.stage_latency


def test_stage_latency_accepts_other_limits(make_trace: MakeTrace) -> None:
    trace = make_trace(("p", "PARSER", 0.2, None), ("t", "TOOL", 99.0, None))
    result = feedback(bind("stage_latency", {"limits_ms": {"PARSER": 100}}), trace=trace)
    assert (result.value, result.rationale) == (False, "PARSER took 200 ms of 100 ms")


def test_tool_errors_agrees_with_the_recorded_conversations(
    recorded_conversations: list[dict], recorded_traces: list[Trace], load_tau: ModuleType
) -> None:
    expected: dict[str, float | None] = {}
    for conversation in recorded_conversations:
        session = f"airline-{conversation['task_id']}-{conversation['trial']}"
        for turn, (_, answer) in enumerate(load_tau.turns(conversation["traj"])):
            replies = [message["content"] or "" for message in answer if message["role"] == "tool"]
            failed = sum(reply.startswith("Error") for reply in replies)
            trace_id = load_tau.TraceBuilder((session, turn), 0).trace_id
            expected[trace_id] = failed / len(replies) if replies else None
    found = {trace.info.trace_id: score_in_production(scorers.tool_errors, trace) for trace in recorded_traces}
    assert found == pytest.approx(expected)
    assert {None, 0.0, 1.0} < set(expected.values())


def test_tool_selection_accuracy_agrees_with_the_recorded_expectations(
    recorded_conversations: list[dict], recorded_traces: list[Trace], load_tau: ModuleType
) -> None:
    expected: dict[str, float | None] = {trace.info.trace_id: None for trace in recorded_traces}
    for conversation in recorded_conversations:
        turns = list(load_tau.turns(conversation["traj"]))
        if not turns:
            continue
        called = [message["name"] for message in turns[-1][1] if message["role"] == "tool"]
        wanted = [action["name"] for action in conversation["info"]["task"]["actions"]]
        either = {*called, *wanted}
        most = sum(max(called.count(tool), wanted.count(tool)) for tool in either)
        common = sum(min(called.count(tool), wanted.count(tool)) for tool in either)
        session = f"airline-{conversation['task_id']}-{conversation['trial']}"
        trace_id = load_tau.TraceBuilder((session, len(turns) - 1), 0).trace_id
        expected[trace_id] = common / most if most else 1.0
    found = {
        trace.info.trace_id: score_in_production(scorers.tool_selection_accuracy, trace) for trace in recorded_traces
    }
    assert found == pytest.approx(expected)
    assert len({score for score in expected.values() if score is not None}) > 2


@pytest.fixture
def evaluation_store(recorded_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that an evaluation may write to, active during the test."""
    shutil.copy(recorded_store.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking_utils, "_tracking_uri", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "airline")


@pytest.mark.usefixtures("evaluation_store")
def test_an_evaluation_returns_the_scores_of_production(recorded_traces: list[Trace]) -> None:
    with_expectation = [trace for trace in recorded_traces if trace.info.assessments]
    handful = [*with_expectation[:4], *recorded_traces[:3]]
    result = evaluate(data=handful, scorers=SHIPPED).result_df
    assert result is not None
    evaluated = result.set_index("trace_id")
    for scorer in SHIPPED:
        column = f"{scorer.name}/value"
        found = {str(key): None if pd.isna(value) else float(value) for key, value in evaluated[column].items()}
        assert found == {trace.info.trace_id: score_in_production(scorer, trace) for trace in handful}
