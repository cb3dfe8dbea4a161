"""What a person reads of a trace: the text of answers and questions in many shapes, and failed tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.traces.reading import answer_text, question_text, tool_failure

TEXT = "Two rooms are free in May."
THOUGHT = {"type": "thinking", "thinking": "let me see"}
CALL = {"id": "c1", "type": "function", "function": {"name": "rooms", "arguments": "{}"}}
BLOCK = {"type": "text", "text": TEXT}

ANSWERS: dict[str, Any] = {
    "text": f"  {TEXT}\n",
    "words of a stream": ["Two rooms ", "are free ", "in May."],
    "OpenAI chat": {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}}]},
    "OpenAI chat, second choice": {
        "choices": [{"message": {"role": "assistant", "content": TEXT}}, {"message": {"content": "Another."}}]
    },
    "OpenAI refusal": {"choices": [{"message": {"role": "assistant", "content": None, "refusal": TEXT}}]},
    "OpenAI chunks": [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "Two rooms "}}]},
        {"choices": [{"delta": {"content": "are free in May."}, "finish_reason": None}]},
        {"choices": [], "usage": {"total_tokens": 9}},
    ],
    "OpenAI responses": {
        "id": "r",
        "object": "response",
        "error": None,
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "name": "rooms", "arguments": '{"month": "May"}'},
            {"type": "function_call_output", "output": "an error"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]},
        ],
    },
    "OpenAI response events": [
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.output_text.delta", "delta": "Two rooms "},
        {"type": "response.output_text.delta", "delta": "are free in May."},
        {"type": "response.output_text.done", "text": TEXT},
        {"type": "response.completed", "response": {"output": [{"type": "message", "content": TEXT}]}},
    ],
    "Anthropic": {"type": "message", "role": "assistant", "content": [THOUGHT, BLOCK], "stop_reason": "end_turn"},
    "Anthropic, with a tool": {
        "role": "assistant",
        "content": [BLOCK, {"type": "tool_use", "name": "rooms", "input": {}}],
    },
    "Anthropic events": [
        {"type": "message_start", "message": {"role": "assistant", "content": []}},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Two rooms "}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "are free in May."}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    ],
    "Gemini": {"candidates": [{"content": {"role": "model", "parts": [{"text": TEXT}]}, "finishReason": "STOP"}]},
    "Gemini, with a thought": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": TEXT}]}}]
    },
    "Gemini chunks": [
        {"candidates": [{"content": {"parts": [{"text": "Two rooms "}]}}]},
        {"candidates": [{"content": {"parts": [{"text": "are free in May."}]}}]},
    ],
    "Bedrock": {
        "output": {
            "message": {
                "role": "assistant",
                "content": [{"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": TEXT}],
            }
        }
    },
    "Bedrock, Titan": {"results": [{"outputText": TEXT, "completionReason": "FINISH"}]},
    "Cohere": {"finish_reason": "COMPLETE", "message": {"role": "assistant", "content": [BLOCK]}},
    "Cohere, first version": {"text": TEXT, "generation_id": "g", "chat_history": [{"role": "USER", "message": "?"}]},
    "Ollama": {"model": "llama", "message": {"role": "assistant", "content": TEXT}, "done": True},
    "Ollama, generate": {"model": "llama", "response": TEXT, "context": [1, 2]},
    "Hugging Face": [{"generated_text": TEXT}],
    "Agents SDK": {"final_output": TEXT, "new_items": [{"type": "tool_call_item"}]},
    "Vercel": {"text": TEXT, "finishReason": "stop", "toolCalls": []},
    "Pydantic AI": [
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "Which rooms?"}]},
        {"kind": "response", "parts": [{"part_kind": "text", "content": TEXT}]},
    ],
    "OpenTelemetry": [{"role": "assistant", "parts": [{"type": "text", "content": TEXT}], "finish_reason": "stop"}],
    "Agent Development Kit": [
        {"author": "agent", "content": {"role": "model", "parts": [{"functionCall": {"name": "rooms"}}]}},
        {"author": "agent", "content": {"role": "model", "parts": [{"text": TEXT}]}},
    ],
    "LangGraph": {
        "messages": [
            {"type": "human", "content": "Which rooms?"},
            {"type": "ai", "content": "", "tool_calls": [{"name": "rooms"}]},
            {"type": "tool", "content": "an error"},
            {"type": "ai", "content": [BLOCK], "invalid_tool_calls": []},
        ]
    },
    "LangChain object": {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", "AIMessage"],
        "kwargs": {"content": TEXT, "type": "ai"},
    },
    "LangChain chunks": [
        {"type": "AIMessageChunk", "content": "Two rooms "},
        {"type": "AIMessageChunk", "content": "are free in May."},
    ],
    "LangChain generations": {"generations": [[{"text": TEXT, "message": {"content": TEXT}}]], "llm_output": None},
    "LangChain agent": {"input": "?", "chat_history": [{"type": "human", "content": "?"}], "output": TEXT},
    "LlamaIndex": {"response": TEXT, "source_nodes": [{"node": {"text": "an error"}}]},
    "LlamaIndex chat": {"message": {"role": "assistant", "blocks": [{"block_type": "text", "text": TEXT}]}},
    "DSPy": {"reasoning": "an error would be bad", "answer": TEXT},
    "DSPy, own field": {"reasoning": "an error would be bad", "offer": TEXT},
    "an application's own": {"result": TEXT, "error": None, "errors": []},
    "nested": {"output": {"answer": TEXT, "confidence": 0.9}},
}
EMPTY: dict[str, Any] = {
    "nothing": None,
    "no stream": [],
    "no object": {},
    "blank": " \n",
    "no content": {"content": None},
    "OpenAI, only a tool": {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [CALL]}}]},
    "OpenAI responses": {"id": "r", "error": None, "output": []},
    "Anthropic": {"type": "message", "content": [{"type": "text", "text": ""}]},
    "Anthropic, only a thought": {"role": "assistant", "content": [THOUGHT]},
    "LangGraph": {"messages": [{"type": "human", "content": "Which rooms?"}, {"type": "ai", "content": ""}]},
    "no assistant": {"messages": [{"role": "user", "content": "Which rooms?"}, {"role": "system", "content": "x"}]},
}
OTHERS: list[tuple[Any, str]] = [
    (42, "42"),
    (True, "true"),
    ({"error": {"code": 429, "message": "too many requests"}}, "error: too many requests"),
    ([{"type": "user", "name": "Ann", "city": "Rome"}], "Rome"),
    ({"rooms": ["12", "14"], "month": "May"}, "1214\nMay"),
]


@pytest.mark.parametrize("shape", ANSWERS)
def test_an_answer_is_the_text_that_a_person_reads(shape: str) -> None:
    assert answer_text(ANSWERS[shape]) == TEXT


@pytest.mark.parametrize("shape", EMPTY)
def test_an_answer_without_text_is_empty(shape: str) -> None:
    assert answer_text(EMPTY[shape]) == ""


@pytest.mark.parametrize(("outputs", "text"), OTHERS)
def test_other_outputs_are_their_values(outputs: Any, text: str) -> None:
    assert answer_text(outputs) == text


QUESTION = "Which rooms are free?"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": QUESTION},
]
QUESTIONS: dict[str, Any] = {
    "text": QUESTION,
    "messages": MESSAGES,
    "messages as an argument": {"model": "m", "messages": MESSAGES, "temperature": 0},
    "a request as an argument": {"request": {}, "input": MESSAGES},
    "blocks": [
        {"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {}}]}
    ],
    "Gemini": {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]},
    "LangChain": [[{"type": "system", "content": "Be brief."}, {"type": "human", "content": QUESTION}]],
    "an argument": {"question": QUESTION, "limit": 3},
}


@pytest.mark.parametrize("shape", QUESTIONS)
def test_a_question_is_the_last_text_of_the_user(shape: str) -> None:
    assert question_text(QUESTIONS[shape]) == QUESTION


def test_arguments_without_a_question_are_json() -> None:
    assert question_text({"city": "Zürich", "nights": 2}) == '{"city": "Zürich", "nights": 2}'


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["content", "messages", "choices", "role", "type", "text", "error", "output", "id", "delta"]
            )
            | st.text(),
            inner,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_has_a_text(value: Any) -> None:
    for read in (answer_text, question_text):
        text = read(value)
        assert text == text.strip()
    assert tool_failure("OK", value) is None or isinstance(value, dict | list | str)


def test_deep_values_have_no_text() -> None:
    value: Any = "deep"
    for _ in range(5000):
        value = {"output": [value]}
    assert answer_text(value) == question_text(value) == ""
    assert tool_failure("OK", value) is None


FAILED: dict[str, tuple[str, Any, str]] = {
    "status": ("ERROR", "fine", "status ERROR"),
    "LangChain": ("OK", {"type": "tool", "content": "late", "status": "error"}, "output has status: error"),
    "LangChain object": ("OK", {"lc": 1, "kwargs": {"status": "error", "content": ""}}, "output has status: error"),
    "LangGraph": ("OK", {"messages": [{"type": "tool", "status": "error"}]}, "output has status: error"),
    "MCP": ("OK", {"content": [{"type": "text", "text": "?"}], "isError": True}, "output has isError: true"),
    "MCP response": ("OK", {"jsonrpc": "2.0", "result": {"content": [], "isError": True}}, "output has isError: true"),
    "Anthropic": ("UNSET", {"type": "tool_result", "is_error": True}, "output has is_error: true"),
    "an object": ("OK", {"error": {"code": 404}, "rows": None}, "output has an error"),
    "text": ("OK", json.dumps({"error": "no such room"}), "output has an error"),
    "a list": ("OK", [{"rows": 1}, {"error": "no such room"}], "output has an error"),
}
WORKED = [
    None,
    "an error is mentioned",
    '{"error": ',
    {"error": None},
    {"error": ""},
    {"error": [], "rows": [1]},
    {"status": "success", "isError": False},
    {"rows": [{"error": "a column of the data"}]},
    {"errors": 3},
]


@pytest.mark.parametrize("shape", FAILED)
def test_a_failed_tool_call_has_its_reason(shape: str) -> None:
    status, outputs, reason = FAILED[shape]
    assert tool_failure(status, outputs) == reason


@pytest.mark.parametrize("outputs", WORKED)
def test_a_tool_call_that_worked_has_none(outputs: Any) -> None:
    assert tool_failure("OK", outputs) is None
