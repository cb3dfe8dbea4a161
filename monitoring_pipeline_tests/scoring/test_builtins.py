"""MLflow's own scorers by name: parameters, rate, digest, and rows on traces and sessions."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow.entities import Expectation, Trace

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.scoring import builtins
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.runner import PendingTrace, assess
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline_tests.scoring.made import made_trace
from monitoring_pipeline_tests.scoring.model_double import ModelDouble
from monitoring_pipeline_tests.sources.stores import START

MODEL = "openai:/gpt-4o-mini"
KEY_FREE = {"PIIDetection", "RegexMatch", "ResponseLength"}
PARAMS: dict[str, dict[str, Any]] = {
    "Guidelines": {"guidelines": ["be polite"]},
    "ConversationalGuidelines": {"guidelines": "be polite"},
    "RegexMatch": {"pattern": "answer"},
    "ResponseLength": {"max_length": 5},
    "make_judge": {"instructions": "Is {{ outputs }} polite?"},
}
RATES = {
    **dict.fromkeys(["Safety", "ConversationalSafety", *KEY_FREE], 1.0),
    **dict.fromkeys(["RelevanceToQuery", "RetrievalRelevance"], 0.2),
    **dict.fromkeys(["Guidelines", "ConversationalGuidelines", "ExpectationsGuidelines"], 0.1),
}
JUDGES = sorted(set(builtins.names()) - KEY_FREE)


def entry(builtin: str, **values: Any) -> ScorerSettings:
    model = {} if builtin in KEY_FREE else {"model": MODEL}
    settings = {"name": "judge", "builtin": builtin, "params": PARAMS.get(builtin, {}), **model, **values}
    return ScorerSettings.model_validate({name: value for name, value in settings.items() if value is not None})


def load(builtin: str, **values: Any) -> ConfiguredScorer:
    (loaded,) = load_scorers([entry(builtin, **values)])
    return loaded


def expectations(**values: Any) -> list[Expectation]:
    return [Expectation(name=name, value=value) for name, value in values.items()]


def row_of(scorer: ConfiguredScorer, *traces: Trace) -> dict[str, Any] | None:
    """The scorer's row on the trace or session; None if it does not apply."""
    pending = PendingTrace(traces[0].info.trace_id, START, "1", tuple(trace.to_json() for trace in traces))
    row, applies = assess(scorer, pending, "run", Meter(scorer.limits))
    return row if applies else None


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails if a connection was attempted, even if its failure was ignored."""
    tried: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **options: refuse(socket.socket(), address))
    yield
    assert tried == []


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", builtins.names())
def test_each_scorer_can_be_configured_and_has_its_rate(name: str) -> None:
    scorer = load(name)
    assert scorer.model == (None if name in KEY_FREE else MODEL)
    assert scorer.sample_rate == RATES.get(name, 0.05)
    assert load(name, sample_rate=0.7).sample_rate == 0.7
    assert scorer.limits.concurrency == (1 if name in KEY_FREE else 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (entry("Saftey"), "did you mean Safety?"),
        (entry("make_judges"), "did you mean make_judge?"),
        (entry("Nothing"), "MLflow has no built-in scorer 'Nothing'; it has Completeness,"),
        (entry("Scorer"), "MLflow has no built-in scorer 'Scorer'"),
        (entry("BuiltInScorer"), "MLflow has no built-in scorer 'BuiltInScorer'"),
        (entry("Safety", params={"severity": 1}), "Safety has no parameter severity; it has"),
        (entry("Guidelines", params={}), "guidelines: Field required"),
        (entry("Guidelines", params={"guidelines": 5}), "invalid params for Guidelines: guidelines"),
        (entry("RegexMatch", params={"pattern": "("}), "invalid params for RegexMatch"),
        (entry("ResponseLength", params={"max_length": "long"}), "max_length"),
        (entry("ResponseLength", params={}), "requires at least one of"),
        (entry("PIIDetection", model=MODEL), "PIIDetection has no parameter model"),
        (entry("Safety", params={"name": "other"}), "invalid params for Safety"),
        (entry("make_judge", params={}), "instructions"),
        (entry("make_judge", params={**PARAMS["make_judge"], "feedback_value_type": []}), "or a list of values"),
        (entry("make_judge", params={"instructions": "Is {{ answer }} good?"}), "unsupported variables"),
        (entry("make_judge", params={"instructions": "Good?"}), "must contain at least one variable"),
        (entry("make_judge", params={**PARAMS["make_judge"], "tone": 1}), "invalid params for make_judge"),
        (entry("make_judge", params={**PARAMS["make_judge"], "feedback_value_type": "date"}), "one of bool, int"),
    ],
)
def test_an_invalid_configuration_is_reported_in_one_line(settings: ScorerSettings, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_scorers([settings])
    (problem,) = caught.value.problems
    assert problem.startswith("scorer 'judge': ")
    assert message in problem
    assert "\n" not in problem


@pytest.mark.parametrize("name", JUDGES)
def test_a_digest_changes_with_model_and_params(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [load(name).digest, load(name, model="openai:/gpt-4o").digest, load(name, model=None).digest]
    monkeypatch.setenv("MLFLOW_GENAI_JUDGE_DEFAULT_MODEL", "openai:/gpt-5")
    assert load(name).digest == digests[0]
    digests.append(load(name, model=None).digest)
    params = PARAMS.get(name, {})
    digests.append(load(name, params={**params, "inference_params": {"temperature": 0.5}}).digest)
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("make_judge", PARAMS["make_judge"], {"instructions": "Is {{ outputs }} rude?"}),
        ("make_judge", PARAMS["make_judge"], {**PARAMS["make_judge"], "feedback_value_type": "bool"}),
        ("make_judge", PARAMS["make_judge"], {**PARAMS["make_judge"], "feedback_value_type": ["a", "b"]}),
        ("Guidelines", {"guidelines": "be polite"}, {"guidelines": "be rude"}),
        ("RegexMatch", {"pattern": "a"}, {"pattern": "b"}),
        ("PIIDetection", {"pii_types": ["email"]}, {"pii_types": ["email", "phone"]}),
        ("ResponseLength", {"max_length": 5}, {"max_length": 6}),
    ],
)
def test_a_digest_changes_with_the_judged_traces_or_sessions(
    name: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert load(name, params=one).digest != load(name, params=other).digest


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "params", "answer", "score"),
    [
        ("PIIDetection", {}, "all is well", 1.0),
        ("PIIDetection", {}, "write to anna@example.com", 0.0),
        ("PIIDetection", {"pii_types": ["ssn"]}, "write to anna@example.com", 1.0),
        ("RegexMatch", {"pattern": "#W[0-9]{7}"}, "your order #W1234567", 1.0),
        ("RegexMatch", {"pattern": "#W[0-9]{7}"}, "your order", 0.0),
        ("ResponseLength", {"max_length": 10}, "short", 1.0),
        ("ResponseLength", {"max_length": 1, "unit": "words"}, "two words", 0.0),
    ],
)
def test_scorers_without_a_model_need_no_network(name: str, params: Any, answer: str, score: float) -> None:
    row = row_of(load(name, params=params), made_trace(1, answer=answer))
    assert row is not None
    assert (row["score"], row["error_code"], row["source_type"]) == (score, None, "CODE")
    assert (row["input_tokens"], row["cost_usd"]) == (None, None)


@pytest.mark.parametrize("name", JUDGES)
def test_every_judge_returns_a_row_with_its_usage(name: str, model: ModelDouble) -> None:
    scorer = load(name)
    if name == "UserFrustration":  # the only one that does not answer yes or no
        model.answer = lambda prompt: {"result": "none", "rationale": "fine"}
    labels = expectations(expected_response="Paris", guidelines=["be polite"])
    session = [made_trace(n, session="s", retrieved=[["a page"]], assessments=labels) for n in range(3)]
    row = row_of(scorer, *(session if scorer.session_idle is not None else session[:1]))
    assert row is not None
    assert (row["error_message"], row["error_code"], row["rationale"] is None) == (None, None, False)
    assert row["score"] == (None if name == "UserFrustration" else 1.0)
    assert row["source_type"] == "LLM_JUDGE"
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens
    assert scorer.price is not None
    assert row["cost_usd"] == pytest.approx(scorer.price.cost_usd(*model.tokens), abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "answer", "value", "score"),
    [
        ("bool", True, True, 1.0),
        ("bool", "no", False, 0.0),
        ("int", 4, 4, 4.0),
        ("int", "4", 4, 4.0),
        ("float", 0.25, 0.25, 0.25),
        ("str", "fine", "fine", None),
        (["good", "bad"], "bad", "bad", None),
        (None, "pass", "pass", 1.0),
        ("bool", "perhaps", None, None),
        ("int", 4.5, None, None),
        ("float", "NaN", None, None),
        ("str", ["fine"], None, None),
        (["good", "bad"], "Good!", None, None),
    ],
)
def test_a_judge_answers_in_its_type_or_fails(
    kind: Any, answer: Any, value: Any, score: float | None, model: ModelDouble
) -> None:
    model.answer = lambda prompt: {"result": answer, "rationale": "so"}
    params = PARAMS["make_judge"] | ({} if kind is None else {"feedback_value_type": kind})
    row = row_of(load("make_judge", params=params), made_trace(1))
    assert row is not None
    code = "MALFORMED_OUTPUT" if value is None else None
    assert (json.loads(row["value"] or "null"), row["score"], row["error_code"]) == (value, score, code)


@pytest.mark.parametrize(
    ("name", "params", "labels"),
    [
        ("RetrievalGroundedness", {}, {}),
        ("RetrievalRelevance", {}, {}),
        ("RetrievalSufficiency", {}, {"expected_response": "Paris"}),
        ("Correctness", {}, {}),
        ("Correctness", {}, {"expected_tools": ["search"]}),
        ("Equivalence", {}, {"expected_facts": ["Paris"]}),
        ("ExpectationsGuidelines", {}, {"expected_response": "Paris"}),
        ("ToolCallCorrectness", {"should_exact_match": True}, {"expected_response": "Paris"}),
        ("make_judge", {"instructions": "Is {{ outputs }} what {{ expectations }} says?"}, {}),
    ],
)
def test_a_judge_that_does_not_apply_sends_no_request(
    name: str, params: Any, labels: dict[str, Any], model: ModelDouble
) -> None:
    assert row_of(load(name, params=params), made_trace(1, assessments=expectations(**labels))) is None
    assert model.requests == []


def test_sufficiency_needs_expectations_and_retrieved_context(model: ModelDouble) -> None:
    assert row_of(load("RetrievalSufficiency"), made_trace(1, retrieved=[["a page"]])) is None
    assert model.requests == []


@pytest.mark.parametrize(
    ("name", "retrieved", "requests", "score"),
    [
        ("RetrievalRelevance", [["good", "bad", "bad", "good"]], 4, 0.5),
        ("RetrievalRelevance", [["good"], ["bad", "good"]], 3, 2 / 3),
        ("RetrievalGroundedness", [["good", "fine"], ["bad"], ["bad"]], 3, 1 / 3),
        ("RetrievalSufficiency", [["good"], ["bad"]], 2, 0.5),
    ],
)
def test_several_retrieved_chunks_yield_one_row(
    name: str, retrieved: list[list[str]], requests: int, score: float, model: ModelDouble
) -> None:
    model.answer = lambda prompt: {"result": "no" if "bad" in prompt else "yes", "rationale": "so"}
    trace = made_trace(1, retrieved=retrieved, assessments=expectations(expected_response="Paris"))
    row = row_of(load(name), trace)
    assert row is not None
    assert row["score"] == pytest.approx(score)
    assert row["rationale"].count("so") == len(model.requests) == requests
    assert builtins.request_count(load(name).scorer, [trace.to_json()]) == requests
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens


def test_one_unreadable_answer_of_several_is_an_error(model: ModelDouble) -> None:
    model.answer = lambda prompt: {"result": "perhaps" if "bad" in prompt else "yes", "rationale": "so"}
    row = row_of(load("RetrievalRelevance"), made_trace(1, retrieved=[["good", "bad"]]))
    assert row is not None
    assert (row["error_code"], row["score"]) == ("MALFORMED_OUTPUT", None)
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens


def test_a_session_is_judged_turn_by_turn(model: ModelDouble) -> None:
    scorer = load("KnowledgeRetention")
    turns = [made_trace(n, session="s") for n in range(4)]
    assert row_of(scorer, *turns) is not None
    assert builtins.request_count(scorer.scorer, [turn.to_json() for turn in turns]) == len(model.requests) == 4


@pytest.mark.parametrize("text", ["", "{", "null", "{}", "[" * 100_000])
def test_no_request_is_sent_about_an_unreadable_trace(text: str) -> None:
    assert builtins.request_count(load("RetrievalRelevance").scorer, [text]) == 0
