"""Tokens and cost of model calls, in the spelling of each client; all traces are made by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow.entities import Trace

from monitoring_pipeline.compat.mlflow import token_prices
from monitoring_pipeline.tables import TOKEN_COLUMNS
from monitoring_pipeline_tests.sources.stores import span_json
from monitoring_pipeline_tests.traces.test_flatten import flat, made_trace

# Attributes of a call of gpt-4.1-mini with 100 input tokens, 40 of them cached, and 20 output tokens, 5 for reasoning.
CLIENTS: dict[str, dict[str, Any]] = {
    "MLflow": {
        "mlflow.chat.tokenUsage": {"input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 40},
        "gen_ai.usage.reasoning_tokens": 5,
        "mlflow.llm.model": "gpt-4.1-mini",
        "mlflow.llm.provider": "openai",
    },
    "OpenTelemetry": {
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "gen_ai.request.model": "gpt-4.1-mini",
        "gen_ai.provider.name": "openai",
    },
    "OpenTelemetry before": {
        "gen_ai.usage.prompt_tokens": 100,
        "gen_ai.usage.completion_tokens": 20,
        "gen_ai.usage.cache_read_input_tokens": 40,
        "gen_ai.usage.reasoning_tokens": 5,
        "gen_ai.request.model": "gpt-4.1-mini",
        "gen_ai.system": "openai",
    },
    "Traceloop": {
        "llm.usage.prompt_tokens": 100,
        "llm.usage.completion_tokens": 20,
        "llm.usage.total_tokens": 120,
        "gen_ai.usage.cache_read_input_tokens": 40,
        "llm.usage.reasoning_tokens": 5,
        "llm.request.model": "gpt-4.1-mini",
        "gen_ai.system": "openai",
    },
    "OpenInference": {
        "llm.token_count.prompt": 100,
        "llm.token_count.completion": 20,
        "llm.token_count.prompt_details.cache_read": 40,
        "llm.token_count.completion_details.reasoning": 5,
        "llm.model_name": "gpt-4.1-mini",
        "llm.provider": "openai",
    },
    "Vercel": {
        "ai.usage.inputTokens": 100,
        "ai.usage.outputTokens": 20,
        "ai.usage.cachedInputTokens": 40,
        "ai.usage.reasoningTokens": 5,
        "ai.model.id": "gpt-4.1-mini",
        "ai.model.provider": "openai",
    },
}
PRICES = token_prices("openai", "gpt-4.1-mini")


def calling(*spans: tuple[int, int | None, dict[str, Any]], **info: Any) -> Trace:
    """A trace of spans (number, number of the parent, attributes), without totals unless `info` has some."""
    made = [
        span_json(1, number, parent=parent, attributes={key: json.dumps(value) for key, value in attributes.items()})
        for number, parent, attributes in spans
    ]
    return made_trace(made, **{"trace_metadata": {}, **info})


def used(total: int) -> dict[str, Any]:
    return {"gen_ai.usage.input_tokens": total - 1, "gen_ai.usage.output_tokens": 1}


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_gives_the_same_row(client: str) -> None:
    row = flat(calling((1, None, {}), (2, 1, CLIENTS[client])))
    assert [row[name] for name in TOKEN_COLUMNS] == [100, 20, 120, 40, None, 5]
    [call] = row["model_calls"]
    assert (call["provider"], call["model"], call["span_id"]) == ("openai", "gpt-4.1-mini", f"{2:016x}")
    assert PRICES is not None
    new, output, cached, _ = PRICES
    assert row["cost_usd"] == pytest.approx(60 * new + 20 * output + 40 * cached)
    assert row["cost_source"] == "computed"


@pytest.mark.parametrize(
    ("spans", "tokens"),
    [
        ([(1, None, {}), (2, 1, used(10)), (3, 1, used(20))], [10, 20]),
        ([(1, None, used(30)), (2, 1, used(10)), (3, 1, used(20))], [10, 20]),  # an agent repeats the sum
        ([(1, None, used(30)), (2, 1, used(30))], [30]),  # one wraps the other
        ([(1, None, used(50)), (2, 1, used(10))], [50]),  # not all calls below it were recorded
        ([(1, None, {"gen_ai.request.model": "m", "mlflow.spanType": "LLM"}), (2, 1, used(9))], [9]),
        ([(1, 2, used(5)), (2, 1, {})], [5]),  # each the other's parent
        ([(1, 77, used(5))], [5]),
    ],
)
def test_no_token_counts_twice(spans: list[Any], tokens: list[int]) -> None:
    row = flat(calling(*spans))
    assert sorted(call["total_tokens"] for call in row["model_calls"]) == tokens
    assert row["total_tokens"] == sum(tokens)


def test_a_failed_call_without_tokens_is_a_call() -> None:
    failed = {"mlflow.spanType": "CHAT_MODEL", "gen_ai.request.model": "gpt-4.1-mini"}
    row = flat(calling((1, None, {}), (2, 1, failed), (3, 1, CLIENTS["MLflow"])))
    assert [call["total_tokens"] for call in row["model_calls"]] == [None, 120]
    assert row["cost_source"] == "computed"


def test_a_total_of_the_trace_counts_and_what_it_lacks_is_derived() -> None:
    usage = {"mlflow.trace.tokenUsage": '{"input_tokens": 7, "output_tokens": 3}'}
    row = flat(calling((1, None, CLIENTS["MLflow"]), trace_metadata=usage))
    assert [row[name] for name in TOKEN_COLUMNS] == [7, 3, 10, 40, None, 5]


@pytest.mark.parametrize(
    ("cost", "usd"),
    [
        ({"total_cost": 0.5, "input_cost": 0.1}, 0.5),
        ({"input_cost": 0.1, "output_cost": 0.25}, 0.35),
        ({"total_cost": 0.0}, 0.0),
    ],
)
def test_a_recorded_cost_counts(cost: dict[str, float], usd: float) -> None:
    row = flat(calling((1, None, CLIENTS["MLflow"]), trace_metadata={"mlflow.trace.cost": json.dumps(cost)}))
    assert (row["cost_usd"], row["cost_source"]) == (pytest.approx(usd), "recorded")
    on_span = flat(calling((1, None, {**CLIENTS["MLflow"], "mlflow.llm.cost": cost})))
    assert (on_span["cost_usd"], on_span["cost_source"]) == (pytest.approx(usd), "recorded")


def test_the_cost_is_unknown_if_that_of_a_call_is() -> None:
    unknown = {**used(10), "gen_ai.request.model": "a-model-of-their-own"}
    row = flat(calling((1, None, {}), (2, 1, CLIENTS["MLflow"]), (3, 1, unknown)))
    assert (row["cost_usd"], row["cost_source"], row["total_tokens"]) == (None, None, 130)


@pytest.mark.parametrize("text", ["-5", '"many"', "1e30", "[1]"])
def test_tokens_that_cannot_be_right_enter_nothing(text: str) -> None:
    attributes = {"gen_ai.usage.input_tokens": text, "gen_ai.usage.output_tokens": "3"}
    row = flat(made_trace([span_json(1, attributes=attributes)], trace_metadata={}))
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (None, 3, 3)
    assert len(row["implausible"]) == 1
