"""One scorer on one trace: the row for each kind of result, exception and trace."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dagster import DagsterExecutionInterruptedError
from mlflow.entities import AssessmentError, AssessmentSource, Expectation, Feedback, Trace
from mlflow.genai.scorers import Scorer
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.analysis.verdicts import as_score
from monitoring_pipeline.resources.rows import conform
from monitoring_pipeline.scoring.limits import Limits
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import LONGEST_RESULT, MESSAGE_CHARACTERS, PendingTrace, assess, assessment_id
from monitoring_pipeline.tables import ASSESSMENTS, NOT_APPLICABLE
from monitoring_pipeline.text import secrets
from monitoring_pipeline_tests.scoring.made import made_trace

HOUR = datetime(2026, 1, 1, tzinfo=UTC)
METER = Meter(Limits())
LONE_SURROGATE = "a\ud800b"
JUDGE = AssessmentSource(source_type="LLM_JUDGE", source_id="openai:/gpt-4o")


@pytest.fixture
def pending(recorded_traces: list[Trace]) -> PendingTrace:
    trace = recorded_traces[0]
    return PendingTrace(trace.info.trace_id, HOUR, "1", (trace.to_json(),))


def configured(scorer: Scorer, name: str = "sample", digest: str = "d" * 16) -> ConfiguredScorer:
    return ConfiguredScorer(name, scorer, digest, 0.5, None)


def outcome(function: Callable[..., Any], pending: PendingTrace) -> dict[str, Any]:
    """The row of a scorer that applies, as the table stores it."""
    row, applies = assess(configured(as_scorer(function)), pending, "run-1", METER)
    assert applies
    schema = ASSESSMENTS.columns
    (stored,) = conform(ASSESSMENTS, pa.Table.from_pylist([row], schema=schema)).to_pylist()
    assert row.keys() == set(schema.names)
    return stored


def returning(result: Any) -> Callable[[], Any]:
    def fixed() -> Any:
        return result

    return fixed


def raising(error: BaseException) -> Callable[[], Any]:
    def broken() -> Any:
        raise error

    return broken


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Unspeakable(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("result", "value", "score"),
    [
        (True, True, 1.0),
        (False, False, 0.0),
        (3, 3, 3.0),
        (-0.25, -0.25, -0.25),
        (np.float64(0.5), 0.5, 0.5),
        ("yes", "yes", 1.0),
        ("Pass", "Pass", 1.0),
        (" true ", " true ", 1.0),
        ("no", "no", 0.0),
        ("FAIL", "FAIL", 0.0),
        ("false", "false", 0.0),
        ("perhaps", "perhaps", None),
        ("", "", None),
        ("0.5", "0.5", None),
        (LONE_SURROGATE, LONE_SURROGATE, None),
        (Feedback(value=0.75), 0.75, 0.75),
        (Feedback(value={"a": {"b": 1}}), {"a": {"b": 1}}, None),  # type: ignore[arg-type]
        (Feedback(value=["x"]), ["x"], None),
        ([Feedback(value="yes")], "yes", 1.0),
    ],
)
def test_a_value_is_stored_as_json_with_its_score(
    result: Any, value: Any, score: float | None, pending: PendingTrace
) -> None:
    row = outcome(returning(result), pending)
    assert (json.loads(row["value"]), row["score"], row["error_code"]) == (value, score, None)


@pytest.mark.parametrize(
    ("value", "score"), [(None, None), ([], None), ({}, None), ("YES", 1.0), ("No\n", 0.0), (2, 2.0)]
)
def test_as_score(value: Any, score: float | None) -> None:
    assert as_score(value) == score


@pytest.mark.parametrize(
    "result",
    [
        pytest.param([Feedback(value=1), Feedback(value=2)], id="two"),
        pytest.param([], id="none of them"),
        pytest.param(float("nan"), id="NaN"),
        pytest.param(float("inf"), id="inf"),
        pytest.param(Feedback(value=float("-inf")), id="-inf in feedback"),
        pytest.param(Feedback(value={"a": float("nan")}), id="NaN inside"),
        pytest.param(Expectation(name="expected", value=1), id="expectation"),
        pytest.param([Expectation(name="expected", value=1)], id="expectation in a list"),
        pytest.param(Feedback(value=object()), id="object"),  # type: ignore[arg-type]
        pytest.param(Feedback(value={1, 2}), id="set"),  # type: ignore[arg-type]
        pytest.param(Feedback(value=np.int64(3)), id="numpy integer"),  # type: ignore[arg-type]
        pytest.param(10**400, id="too large for a float"),
        pytest.param(Feedback(value=nested(100_000)), id="too deep"),
    ],
)
def test_a_value_that_cannot_be_stored_is_an_error(result: Any, pending: PendingTrace) -> None:
    row = outcome(returning(result), pending)
    assert (row["error_code"], row["value"], row["score"]) == ("INVALID_VALUE", None, None)
    assert row["error_message"]


@pytest.mark.parametrize("result", [{"a": 1}, [1, 2], np.int64(3), object(), b"yes"])
def test_a_result_of_an_unsupported_type_is_an_error(result: Any, pending: PendingTrace) -> None:
    assert outcome(returning(result), pending)["error_code"] == "SCORER_ERROR"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("quota", "ASSESSMENT_ERROR", "quota"),
        (TimeoutError("late"), "TimeoutError", "late"),
        (AssessmentError("RATE_LIMIT"), "RATE_LIMIT", ""),
        (AssessmentError("", "no code"), "SCORER_ERROR", "no code"),
        (AssessmentError(LONE_SURROGATE, LONE_SURROGATE), "a?b", "a?b"),
    ],
)
def test_feedback_with_an_error_is_an_error(error: Any, code: str, message: str, pending: PendingTrace) -> None:
    row = outcome(returning(Feedback(error=error)), pending)
    assert (row["error_code"], row["error_message"], row["value"], row["score"]) == (code, message, None, None)


@pytest.mark.parametrize("result", [None, Feedback(value=None)])
def test_a_result_of_none_is_not_applicable(result: Any, pending: PendingTrace) -> None:
    row, applies = assess(configured(as_scorer(returning(result))), pending, "run-1", METER)
    schema = NOT_APPLICABLE.columns
    assert not applies
    assert conform(NOT_APPLICABLE, pa.Table.from_pylist([row], schema=schema)).num_rows == 1
    assert row.keys() == set(schema.names)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad answer"), "ValueError: bad answer"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
        (RecursionError("deep"), "RecursionError: deep"),
        (ValueError(LONE_SURROGATE), "ValueError: a?b"),
    ],
)
def test_an_exception_is_an_error(error: BaseException, message: str, pending: PendingTrace) -> None:
    row = outcome(raising(error), pending)
    assert (row["error_code"], row["error_message"]) == ("SCORER_ERROR", message)


def test_an_exception_without_a_text_is_an_error(pending: PendingTrace) -> None:
    row = outcome(raising(Unspeakable()), pending)
    assert row["error_code"] == "SCORER_ERROR"
    assert "Unspeakable" in row["error_message"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DagsterExecutionInterruptedError()])
def test_an_interrupted_run_stops(error: BaseException, pending: PendingTrace) -> None:
    with pytest.raises(type(error)):
        assess(configured(as_scorer(raising(error))), pending, "run-1", METER)


@pytest.mark.parametrize("function", [raising(ValueError("x" * 5000)), returning(Feedback(error="x" * 5000))])
def test_a_long_message_is_cut(function: Callable[[], Any], pending: PendingTrace) -> None:
    assert len(outcome(function, pending)["error_message"]) == MESSAGE_CHARACTERS


@pytest.mark.parametrize(
    "function",
    [
        raising(ValueError("401 for sk-42-secret at https://api")),
        returning(Feedback(value=True, rationale="called with sk-42-secret")),
        returning("sk-42-secret"),
        returning(Feedback(error=AssessmentError("REFUSED", "key sk-42-secret"))),
    ],
)
def test_no_secret_of_the_environment_reaches_a_row(
    function: Callable[[], Any], pending: PendingTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-42-secret")
    monkeypatch.setenv("OTHER_TOKEN", "12345678")  # would also be part of numbers
    secrets.cache_clear()
    row = outcome(function, pending)
    secrets.cache_clear()
    assert "***" in str(row)
    assert "sk-42-secret" not in str(row)


@pytest.mark.parametrize("trace_json", [None, "", "{", "null", "[]", "{}", '{"info": {}, "data": {}}'])
def test_a_malformed_trace_is_an_error(trace_json: Any, pending: PendingTrace) -> None:
    row = outcome(returning(True), dataclasses.replace(pending, traces=(trace_json,)))
    assert row["error_code"] == "SCORER_ERROR"


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """An event that a scorer waits for; set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_a_scorer_that_takes_too_long_is_an_error(pending: PendingTrace, released: threading.Event) -> None:
    @as_scorer(timeout=0.2)
    def blocked() -> bool:
        return released.wait()

    row, _ = assess(configured(blocked), pending, "run-1", METER)
    assert row["error_code"] == "SCORER_ERROR"
    assert "timed out after 0.2 seconds" in row["error_message"]
    assert 200 <= row["duration_ms"] < 5000


@pytest.mark.parametrize(("source", "source_type"), [(None, "CODE"), (JUDGE, "LLM_JUDGE")])
def test_the_row_records_the_source(source: Any, source_type: str, pending: PendingTrace) -> None:
    row = outcome(returning(Feedback(value=1, source=source)), pending)
    assert row["source_type"] == source_type


@pytest.mark.parametrize(
    ("rationale", "kept"), [(None, None), ("", ""), ("because", "because"), (LONE_SURROGATE, "a?b"), (7, "7")]
)
def test_the_rationale_is_stored(rationale: Any, kept: str | None, pending: PendingTrace) -> None:
    assert outcome(returning(Feedback(value=1, rationale=rationale)), pending)["rationale"] == kept


def test_a_long_rationale_is_cut_and_says_so(pending: PendingTrace) -> None:
    rationale = outcome(returning(Feedback(value=True, rationale="ab" * 5_000_000)), pending)["rationale"]
    assert len(rationale) < LONGEST_RESULT + 50
    assert rationale.endswith("ab… (cut: 10,000,000 characters)")
    whole = "x" * LONGEST_RESULT
    assert outcome(returning(Feedback(value=True, rationale=whole)), pending)["rationale"] == whole


@pytest.mark.parametrize("value", ["x" * 60_000, {"texts": ["x" * 1000] * 60}])
def test_a_value_that_is_too_long_is_an_error(value: Any, pending: PendingTrace) -> None:
    row = outcome(returning(Feedback(value=value)), pending)
    assert (row["error_code"], row["value"]) == ("INVALID_VALUE", None)
    assert "at most 50,000 are stored" in row["error_message"]


def test_the_row_names_its_trace_and_scorer(pending: PendingTrace) -> None:
    row = outcome(returning(1), pending)
    identity = {"trace_id": pending.trace_id, "trace_hour": HOUR, "experiment_id": "1"}
    origin = {"scorer": "sample", "scorer_digest": "d" * 16, "sample_rate": 0.5, "dagster_run_id": "run-1"}
    assert row.items() >= (identity | origin).items()


def test_a_scorer_sees_the_recorded_trace(
    recorded_conversations: list[dict], recorded_traces: list[Trace], load_tau: ModuleType
) -> None:
    conversation = recorded_conversations[0]
    turns = list(load_tau.turns(conversation["traj"]))
    session = f"airline-{conversation['task_id']}-{conversation['trial']}"
    trace_id = load_tau.TraceBuilder((session, len(turns) - 1), 0).trace_id
    trace = next(trace for trace in recorded_traces if trace.info.trace_id == trace_id)
    seen: dict[str, Any] = {}

    def look(inputs: Any, outputs: Any, expectations: Any, trace: Any) -> None:
        seen.update(inputs=inputs, outputs=outputs, expectations=expectations, trace_id=trace.info.trace_id)

    assess(configured(as_scorer(look)), PendingTrace(trace_id, HOUR, "1", (trace.to_json(),)), "run-1", METER)
    user, answer = turns[-1]
    assert seen == {
        "inputs": {"messages": [user]},
        "outputs": {"content": next(m["content"] for m in reversed(answer) if m["role"] == "assistant")},
        "expectations": {"expected_tools": [action["name"] for action in conversation["info"]["task"]["actions"]]},
        "trace_id": trace_id,
    }


def test_without_a_root_the_scorer_sees_the_topmost_span() -> None:
    trace = made_trace(1, retrieved=[["a page"]])
    trace.data.spans = [span for span in trace.data.spans if span.parent_id is not None]  # the root never came
    seen = []

    @as_scorer
    def seeing(inputs: Any, outputs: Any) -> bool:
        seen.append((inputs, outputs))
        return True

    assess(configured(seeing), PendingTrace(trace.info.trace_id, HOUR, "1", (trace.to_json(),)), "run-1", METER)
    assert seen == [({"question": "question 1"}, [{"page_content": "a page"}])]


def test_an_assessment_id_fits_mlflow_and_is_stable() -> None:
    scorer = configured(as_scorer(returning(1)), name="n" * 64)
    ids = {assessment_id("tr-" + "0" * 500, scorer) for _ in range(2)}
    assert [len(one) <= 50 for one in ids] == [True]


def test_an_assessment_id_is_unique_to_trace_scorer_and_digest() -> None:
    function = as_scorer(returning(1))
    ids = {
        assessment_id(trace, configured(function, name, digest * 16))
        for trace in ("tr-1", "tr-2")
        for name in ("one", "other")
        for digest in ("d", "e")
    }
    assert len(ids) == 8
