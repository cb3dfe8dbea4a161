"""What a person reads of a trace: the question, the answer, and whether a tool call failed.

Inputs and outputs have the shapes of many frameworks: chat completions and responses of OpenAI, messages of Anthropic,
Gemini, Bedrock, Cohere and Ollama, the Agents SDK, LangChain and LangGraph, LlamaIndex, DSPy, Pydantic AI, streams of
their chunks, and plain text. Shipped scorers use this module, and their digests cover its source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

DEPTH = 20  # of nested containers that are read

# Keys whose value contains the text, in order of preference: containers of messages, then fields of messages, then
# names that applications give to an answer or a question.
_CONTAINERS = ("choices", "candidates", "messages", "generations", "output", "outputs", "message")
_FIELDS = ("content", "parts", "blocks", "delta", "text", "output_text", "kwargs")
_ANSWERS = (
    "final_output",
    "final_answer",
    "answer",
    "response",
    "reply",
    "result",
    "results",
    "completion",
    "generation",
    "generated_text",
    "outputText",
    "raw",
)
_QUESTIONS = ("question", "query", "prompt", "user_input", "user_message", "input", "inputs", "task", "contents")
# Fields that describe a message or an answer, or lead to it, and are not part of it.
_ASIDE = {
    "annotations", "created", "created_at", "finish_reason", "finishReason", "id", "index",
    "invalid_tool_calls", "logprobs", "model", "name", "object", "rationale", "reasoning", "reasoning_content",
    "reasoningContent", "response_metadata", "role", "source_nodes", "stop_reason", "stopReason", "thinking",
    "thought", "tool_call_id", "tool_calls", "type", "usage", "usage_metadata"
}  # fmt: skip
_NOT_READ = {
    "function_call", "function_call_output", "image", "image_url", "input_json_delta", "reasoning",
    "redacted_thinking", "thinking", "thinking_delta", "tool", "tool_call", "tool_calls", "tool_result",
    "tool_use"
}  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """One side of a conversation: the roles of its messages, and the names of its text."""

    roles: frozenset[str]
    names: tuple[str, ...]


_ANSWER = _Side(frozenset({"assistant", "ai", "model", "chatbot", "aimessage", "aimessagechunk", "response"}), _ANSWERS)
_QUESTION = _Side(frozenset({"user", "human", "humanmessage", "request"}), _QUESTIONS)
_ROLES = _ANSWER.roles | _QUESTION.roles | {"system", "developer", "tool", "function", "toolmessage", "systemmessage"}


def answer_text(outputs: Any) -> str:
    """The text of a trace's or a span's outputs that a person reads, stripped; empty if there is none.

    Of messages, that of the last one by the assistant; of chunks and of blocks, all, without reasoning and tool calls.
    Of other objects, the values. An error in place of an answer counts as text, as "error: …".
    """
    return _text(outputs, _ANSWER, DEPTH).strip()


def question_text(inputs: Any) -> str:
    """The text of a trace's or a span's inputs that a person wrote, stripped: of messages, the user's last one.

    Arguments without a question among them are JSON.
    """
    if isinstance(inputs, dict) and inputs.keys().isdisjoint((*_CONTAINERS, *_FIELDS, *_QUESTIONS)):
        return json.dumps(inputs, default=str, ensure_ascii=False)
    return _text(inputs, _QUESTION, DEPTH).strip()


def tool_failure(status: str, outputs: Any) -> str | None:
    """How a tool call failed, from the span's status code and outputs; None if it did not.

    Outputs that report an error: `status: error` (a ToolMessage of LangChain), `isError: true` (MCP; also `is_error`),
    and an `error` that is not empty.
    """
    if status == "ERROR":
        return "status ERROR"
    return _reported(outputs, DEPTH)


def _reported(outputs: Any, depth: int) -> str | None:
    if isinstance(outputs, str) and outputs.lstrip()[:1] in ("{", "["):
        try:
            outputs = json.loads(outputs)
        except (ValueError, RecursionError):
            return None
    if depth == 0:
        return None
    if isinstance(outputs, list):
        return next((found for item in outputs if (found := _reported(item, depth - 1))), None)
    if not isinstance(outputs, dict):
        return None
    for key in ("isError", "is_error"):
        if outputs.get(key) is True:
            return f"output has {key}: true"
    if str(outputs.get("status")).lower() == "error":
        return "output has status: error"
    if outputs.get("error"):
        return "output has an error"
    wrapped = (outputs.get(key) for key in ("result", "output", "kwargs", "messages"))
    return next(
        (found for item in wrapped if isinstance(item, dict | list) and (found := _reported(item, depth - 1))), None
    )


def _text(value: Any, side: _Side, depth: int) -> str:
    if value is None or depth == 0:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _of_object(value, side, depth)
    if isinstance(value, list | tuple):
        return _of_list(value, side, depth)
    return json.dumps(value, default=str)


def _of_object(value: dict[str, Any], side: _Side, depth: int) -> str:
    if str(value.get("type", "")).lower() in _NOT_READ or value.get("thought") is True:
        return ""
    for key in (*_CONTAINERS, *_FIELDS, *side.names):
        # An answer of an application may be named as a field of a message is: a value wins over an empty one.
        if value.get(key) not in (None, "", [], {}):
            found = value[key][:1] if key in ("choices", "candidates") and isinstance(value[key], list) else value[key]
            return _text(found, side, depth - 1)
    if value.get("refusal"):
        return _text(value["refusal"], side, depth - 1)
    if value.get("error"):
        return f"error: {_text(value['error'], side, depth - 1)}"
    if not _ROLES.isdisjoint(_roles(value)) or any(key in value for key in (*_CONTAINERS, *_FIELDS, *side.names)):
        return ""
    others = (item for key, item in value.items() if key not in _ASIDE)
    return "\n".join(text for item in others if (text := _text(item, side, depth - 1)))


def _of_list(items: Sequence[Any], side: _Side, depth: int) -> str:
    if all(isinstance(item, str) for item in items):  # a stream of words
        return "".join(items)
    objects = [item for item in items if isinstance(item, dict)]
    deltas = [item for item in objects if _is_chunk(item)]
    if deltas:
        return "".join(_text(item, side, depth - 1) for item in deltas)
    by_role = [(item, _roles(item)) for item in objects]
    if any(not _ROLES.isdisjoint(roles) for _, roles in by_role):  # messages
        own = [item for item, roles in by_role if not side.roles.isdisjoint(roles)]
        return _text(own[-1], side, depth - 1) if own else ""
    return "\n".join(text for item in items if (text := _text(item, side, depth - 1)))


def _is_chunk(item: dict[str, Any]) -> bool:
    """Whether the item is one of a stream of chunks, whose texts follow each other without a separator."""
    choices = item.get("choices")
    of_choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    return "delta" in item or "delta" in of_choice or "candidates" in item or "aimessagechunk" in _roles(item)


def _roles(item: dict[str, Any]) -> set[str]:
    """The words that may name the author of a message: LangChain has the author in `type` or in the class's name.

    Empty for an object without a field of messages.
    """
    if item.keys().isdisjoint((*_FIELDS, "message", "refusal", "tool_calls")):
        return set()
    names: Iterable[Any] = (item.get("role"), item.get("type"), item.get("source"), item.get("kind"), *_class_of(item))
    return {name.lower() for name in names if isinstance(name, str)}


def _class_of(item: dict[str, Any]) -> list[Any]:
    identity = item.get("id")
    return identity[-1:] if isinstance(identity, list) else []
