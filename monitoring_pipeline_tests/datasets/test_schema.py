"""The schema of hand-written datasets: valid records, and a line for each mistake."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from monitoring_pipeline.api import validate_dataset, with_guidelines
from monitoring_pipeline.errors import MonitoringError

RECORDS: list[dict[str, Any]] = [
    {
        "inputs": {"question": "Which ten accounts grew most?"},
        "expectations": {
            "expected_facts": ["growth", "accounts"],
            "expected_query_type": "growth",
            "expected_tools": ["account_growth"],
            "expected_filters": {"vertical": "MFG"},
            "min_response_length": 100,
            "guidelines": ["Names the accounts"],
        },
        "metadata": {"test_id": "test_001", "category": "growth", "difficulty": "easy", "architecture": "multi_agent"},
    },
    {
        "inputs": {"question": "What will the weather be?"},
        "expectations": {"expected_facts": [], "expected_query_type": None, "expected_tools": []},
        "metadata": {"test_id": "test_002", "category": "edge_case", "difficulty": "hard", "notes": "out of scope"},
    },
    {"inputs": {"query": ""}},
    {
        "inputs": {"query": "…" * 1000},
        "outputs": "text",
        "expectations": {"expected_response": "7", "must_rhyme": True},
    },
    {"inputs": {"messages": [{"role": "user", "content": "Hello"}]}, "metadata": {"source_trace": "tr-1"}},
]


def problems(*records: Any) -> list[str]:
    with pytest.raises(MonitoringError) as raised:
        validate_dataset([*records])
    return str(raised.value).splitlines()


def test_valid_records_are_unchanged_except_for_an_expectation_of_none() -> None:
    before = copy.deepcopy(RECORDS)
    checked = validate_dataset(RECORDS)
    assert before == RECORDS
    assert checked[0] == RECORDS[0]
    assert checked[1]["expectations"] == {"expected_facts": [], "expected_query_type": "none", "expected_tools": []}
    assert checked[2:] == RECORDS[2:]


def test_other_expectations_of_none_are_left_out() -> None:
    record = {"inputs": {"q": 1}, "expectations": {"expected_response": None, "mine": None, "expected_tools": []}}
    assert validate_dataset([record]) == [{"inputs": {"q": 1}, "expectations": {"expected_tools": []}}]


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({}, "record 0: inputs: missing; add it"),
        ({"inputs": "text"}, "record 0: inputs = 'text': must be a dictionary"),
        ("text", "record 0: must be a dictionary with inputs, not str"),
        (
            {"inputs": {}, "expectation": {}},
            "record 0: expectation: unknown; a record has inputs, outputs, expectations, metadata",
        ),
        (
            {"inputs": {}, "expectations": {"expected_tools": "search"}, "metadata": {"test_id": "t7"}},
            "record 0 (t7): expectations.expected_tools = 'search': input should be a valid list",
        ),
        (
            {"inputs": {}, "expectations": {"expected_facts": ["a", 7]}},
            "record 0: expectations.expected_facts[1] = 7: input should be a valid string",
        ),
        (
            {"inputs": {}, "expectations": {"expected_tool_calls": [{"name": "a", "args": {}}]}},
            "record 0: expectations.expected_tool_calls[0].args: unknown; an expected tool call has name and arguments",
        ),
        (
            {"inputs": {}, "expectations": {"min_response_length": -1}},
            "record 0: expectations.min_response_length = -1: input should be greater than or equal to 0",
        ),
        (
            {"inputs": {}, "metadata": {"difficulty": "Easy"}},
            "record 0: metadata.difficulty = 'Easy': input should be 'easy', 'medium' or 'hard'",
        ),
        ({"inputs": {}, "metadata": []}, "record 0: metadata = []: must be a dictionary"),
        (
            {"inputs": {}, "expectations": {"expected_tool": ["a"]}},
            "record 0: expectations.expected_tool: unknown, but similar to expected_tools; write expected_tools or "
            "another name",
        ),
        (
            {"inputs": {}, "metadata": {"test-id": "a"}},
            "record 0: metadata.test-id: unknown, but similar to test_id; write test_id or another name",
        ),
    ],
)
def test_a_mistake_is_a_line_that_names_record_and_field(record: Any, line: str) -> None:
    assert problems(record) == [line]


@pytest.mark.parametrize("key", ["expected_fact", "Guidelines", "guideline", "expected_repsonse", "expected-tools"])
def test_a_misspelt_known_expectation_is_a_mistake(key: str) -> None:
    assert len(problems({"inputs": {}, "expectations": {key: []}})) == 1


@pytest.mark.parametrize("key", ["expected_topics", "expected_intent", "tone", "max_response_length", "facts"])
def test_expectations_may_have_other_names(key: str) -> None:
    record = {"inputs": {}, "expectations": {key: "anything"}}
    assert validate_dataset([record]) == [record]


def test_all_mistakes_are_reported_together_and_a_test_id_must_be_unique() -> None:
    lines = problems(
        {"inputs": 1, "metadata": {"test_id": "a"}}, {"inputs": {}}, {"inputs": {}, "metadata": {"test_id": "a"}}
    )
    assert lines == [
        "record 0 (a): inputs = 1: must be a dictionary",
        "record 2 (a): record 0 has the same metadata.test_id",
    ]


def test_guidelines_are_added_to_the_records_own() -> None:
    before = copy.deepcopy(RECORDS)
    guided = with_guidelines(RECORDS, ["Is polite"])
    assert before == RECORDS
    assert guided[0]["expectations"] == {
        **RECORDS[0]["expectations"],
        "guidelines": ["Names the accounts", "Is polite"],
    }
    assert guided[2] == {"inputs": {"query": ""}, "expectations": {"guidelines": ["Is polite"]}}
    assert validate_dataset(guided)


def test_guidelines_by_record() -> None:
    guided = with_guidelines(RECORDS, lambda record: ["Declines"] if not record["inputs"].get("query", "x") else [])
    assert [record.get("expectations", {}).get("guidelines") for record in guided] == [
        ["Names the accounts"],
        None,
        ["Declines"],
        None,
        None,
    ]
