"""Which models a trace called, and the tokens and cost of each call, from the attributes of its spans.

Clients spell the same figure differently. `SPELLINGS` has, after MLflow's own attributes, those of OpenTelemetry's
semantic conventions (current and earlier), OpenInference, Traceloop and Vercel's AI SDK, as these document them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from monitoring_pipeline.tables import TOKEN_COLUMNS
from monitoring_pipeline.text import json_or_text
from monitoring_pipeline.traces.claims import Claims

SPELLINGS = {
    "input_tokens": (
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.prompt_tokens",
        "llm.usage.prompt_tokens",
        "llm.token_count.prompt",
        "ai.usage.inputTokens",
        "ai.usage.promptTokens",
    ),
    "output_tokens": (
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "llm.usage.completion_tokens",
        "llm.token_count.completion",
        "ai.usage.outputTokens",
        "ai.usage.completionTokens",
    ),
    "total_tokens": (
        "gen_ai.usage.total_tokens",
        "llm.usage.total_tokens",
        "llm.token_count.total",
        "ai.usage.totalTokens",
        "ai.usage.tokens",
    ),
    "cached_input_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_read_input_tokens",
        "llm.token_count.prompt_details.cache_read",
        "ai.usage.cachedInputTokens",
    ),
    "cache_write_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "llm.token_count.prompt_details.cache_write",
    ),
    "reasoning_tokens": (
        "gen_ai.usage.reasoning.output_tokens",
        "gen_ai.usage.reasoning_tokens",
        "llm.usage.reasoning_tokens",
        "llm.token_count.completion_details.reasoning",
        "ai.usage.reasoningTokens",
    ),
}
COSTS = ("gen_ai.usage.cost", "gen_ai.usage.total_cost", "llm.cost.total")
PARTS_OF_COST = (("llm.cost.prompt", "llm.cost.completion"), ("gen_ai.usage.input_cost", "gen_ai.usage.output_cost"))
MODELS = (
    "mlflow.llm.model",
    "gen_ai.response.model",
    "gen_ai.request.model",
    "llm.response.model",
    "llm.request.model",
    "llm.model_name",
    "embedding.model_name",
    "ai.response.model",
    "ai.model.id",
)
PROVIDERS = ("mlflow.llm.provider", "gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
PROVIDERS += ("ai.model.provider",)
USAGE, COST = "mlflow.chat.tokenUsage", "mlflow.llm.cost"
# Names of MLflow within its own attribute.
OWN_NAMES = {"cached_input_tokens": "cache_read_input_tokens", "cache_write_tokens": "cache_creation_input_tokens"}
PREFIXES = ("gen_ai.", "llm.", "ai.")
OF_MODELS = {"LLM", "CHAT_MODEL", "EMBEDDING"}
RECORDED, COMPUTED = "recorded", "computed"


def model_calls(spans: Iterable[tuple[dict[str, Any], Mapping[str, Any]]], claims: Claims) -> list[dict[str, Any]]:
    """The calls of models among the spans, which are rows of `agent_traces.spans`, each with its attributes.

    One row each: span_id, provider, model, the `TOKEN_COLUMNS`, cost_usd, cost_source (`recorded` by the client, or
    `computed` from MLflow's price list), status and duration_ms. A span whose tokens are no more than those of the
    calls below it repeats their sum, so it is not a call; neither is one that wraps a call and has no tokens.
    """
    found = {row["span_id"]: (row, _call(row, attributes, claims)) for row, attributes in spans}
    made = [call for _, call in found.values() if call is not None]
    if len(made) < 2:  # the usual case: no call can repeat another
        return made
    calls: dict[Any, list[dict[str, Any]]] = {}
    for span_id, children in _children_first({key: row["parent_id"] for key, (row, _) in found.items()}):
        below = [call for child in children for call in calls.pop(child)]
        own = found[span_id][1]
        calls[span_id] = [own] if own is not None and (not below or _tokens([own]) > _tokens(below)) else below
    return [call for top in calls.values() for call in top]


def totals(metadata: Mapping[str, str], calls: list[dict[str, Any]], claims: Claims) -> dict[str, Any]:
    """The trace's `TOKEN_COLUMNS`, cost_usd and cost_source.

    A total that the trace records counts; one that it lacks is the sum of its parts, else of its calls. The cost is
    null if that of a call with tokens is unknown.
    """
    recorded = _object(metadata.get("mlflow.trace.tokenUsage"))
    found = {
        name: _own(recorded, name, claims)
        if name in recorded or OWN_NAMES.get(name) in recorded
        else _sum_of(call[name] for call in calls)
        for name in TOKEN_COLUMNS
    }
    if "total_tokens" not in recorded and {"input_tokens", "output_tokens"} & recorded.keys():
        found["total_tokens"] = _sum_of((found["input_tokens"], found["output_tokens"]))
    recorded_usd = _cost_of(_object(metadata.get("mlflow.trace.cost")), claims)
    if recorded_usd is not None or "mlflow.trace.cost" in metadata:
        return {**found, "cost_usd": recorded_usd, "cost_source": None if recorded_usd is None else RECORDED}
    costly = [call for call in calls if call["cost_usd"] is not None or _tokens([call])]
    if not costly or any(call["cost_usd"] is None for call in costly):
        return {**found, "cost_usd": None, "cost_source": None}
    sources = {call["cost_source"] for call in costly}
    cost_usd = sum(call["cost_usd"] for call in costly)
    return {**found, "cost_usd": cost_usd, "cost_source": COMPUTED if COMPUTED in sources else RECORDED}


def _call(row: dict[str, Any], attributes: Mapping[str, Any], claims: Claims) -> dict[str, Any] | None:
    """The call that the span is, if it has tokens, or a model and the type of such a call; else None."""
    is_of_model = row["span_type"] in OF_MODELS
    if not (is_of_model or USAGE in attributes or any(key.startswith(PREFIXES) for key in attributes)):
        return None
    tokens = _tokens_of(attributes, claims)
    model = _text(attributes, MODELS)
    if tokens is None and not (is_of_model and model):
        return None
    tokens = tokens or dict.fromkeys(TOKEN_COLUMNS)
    provider = _text(attributes, PROVIDERS)
    recorded_usd = _recorded_cost(attributes, claims)
    cost_usd = _computed_cost(provider, model, tokens) if recorded_usd is None else recorded_usd
    start, end = row["start_time"], row["end_time"]
    return {
        "span_id": row["span_id"],
        "provider": provider,
        "model": model,
        **tokens,
        "cost_usd": cost_usd,
        "cost_source": None if cost_usd is None else COMPUTED if recorded_usd is None else RECORDED,
        "status": row["status"],
        "duration_ms": (end - start).total_seconds() * 1000 if start and end else None,
    }


def _tokens_of(attributes: Mapping[str, Any], claims: Claims) -> dict[str, int | None] | None:
    own = _object(attributes.get(USAGE))
    found = {
        name: _own(own, name, claims) if own else _spelled(attributes, SPELLINGS[name], claims)
        for name in TOKEN_COLUMNS
    }
    if own and found["reasoning_tokens"] is None:
        found["reasoning_tokens"] = _spelled(attributes, SPELLINGS["reasoning_tokens"], claims)
    if all(count is None for count in found.values()):
        return None
    if found["total_tokens"] is None:
        found["total_tokens"] = _sum_of((found["input_tokens"], found["output_tokens"]))
    return found


def _own(usage: dict[str, Any], name: str, claims: Claims) -> int | None:
    return claims.count(name, usage.get(OWN_NAMES.get(name, name), usage.get(name)))


def _spelled(attributes: Mapping[str, Any], spellings: Iterable[str], claims: Claims) -> int | None:
    for name in spellings:
        if (value := _json_value(attributes.get(name))) is not None:
            return claims.count(name, value)
    return None


def _recorded_cost(attributes: Mapping[str, Any], claims: Claims) -> float | None:
    if COST in attributes:
        return _cost_of(_object(attributes[COST]), claims)
    for name in COSTS:
        if (value := _json_value(attributes.get(name))) is not None:
            return claims.cost_usd(name, value)
    for parts in PARTS_OF_COST:
        if any(name in attributes for name in parts):
            return _sum_of(claims.cost_usd(name, _json_value(attributes.get(name))) for name in parts)
    return None


def _cost_of(cost: dict[str, Any], claims: Claims) -> float | None:
    """The total of MLflow's form of a cost, else the sum of its parts."""
    if cost.get("total_cost") is not None:
        return claims.cost_usd("total_cost", cost["total_cost"])
    return _sum_of(claims.cost_usd(name, cost.get(name)) for name in ("input_cost", "output_cost"))


def _computed_cost(provider: str | None, model: str | None, tokens: Mapping[str, int | None]) -> float | None:
    """The tokens at the model's prices; input tokens include those that were cached."""
    prices = _prices(provider, model) if model and tokens["total_tokens"] else None
    if prices is None:
        return None
    cached, written = tokens["cached_input_tokens"] or 0, tokens["cache_write_tokens"] or 0
    new = max((tokens["input_tokens"] or 0) - cached - written, 0)
    counts = (new, tokens["output_tokens"] or 0, cached, written)
    return sum(count * price for count, price in zip(counts, prices, strict=True))


@functools.lru_cache(maxsize=1000)
def _prices(provider: str | None, model: str) -> tuple[float, float, float, float] | None:
    from monitoring_pipeline.compat.mlflow import token_prices

    return token_prices(provider, model)


def _tokens(calls: list[dict[str, Any]]) -> int:
    return sum(call["total_tokens"] or 0 for call in calls)


def _sum_of(values: Iterable[Any]) -> Any:
    """The sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _text(attributes: Mapping[str, Any], names: Iterable[str]) -> str | None:
    for name in names:
        value = _json_value(attributes.get(name))
        if isinstance(value, str) and value:
            return value
    return None


def _object(value: Any) -> dict[str, Any]:
    value = _json_value(value)
    return value if isinstance(value, dict) else {}


def _json_value(value: Any) -> Any:
    """The value of an attribute, which may be JSON, or JSON within JSON as some exporters write numbers."""
    if value is None:
        return None
    for _ in range(2):
        if isinstance(value, str) and value[:1] in '"{[-0123456789':
            value = json_or_text(value)
    return value


def _children_first(parents: Mapping[Any, Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Each span's id with the ids of its children, children before parents; a span in a circle has no parent."""
    children: dict[Any, list[Any]] = {key: [] for key in parents}
    tops = []
    for key, parent in parents.items():
        children[parent].append(key) if parent in children and parent != key else tops.append(key)
    order, seen = [], set()
    for top in (*tops, *parents):
        waiting = [top]
        while waiting:
            key = waiting.pop()
            if key not in seen:
                seen.add(key)
                order.append(key)
                waiting.extend(children[key])
    done: set[Any] = set()
    for key in reversed(order):
        yield key, [child for child in children[key] if child in done]
        done.add(key)
