"""The schema of hand-written datasets, with expectations for each stage of a multi-agent application."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from monitoring_pipeline.datasets.records import Record
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.settings.problems import wrong_value

LIKENESS = 0.9  # difflib ratio: `expected_tools` has .96 with `expected_tool`, .83 with `expected_topics`
NO_QUERY_TYPE = "none"


class _Open(BaseModel):
    """A part of a record that allows additional keys, for custom scorers."""

    model_config = ConfigDict(extra="allow")


class ExpectedToolCall(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: StrictStr
    arguments: dict[str, Any] = Field(default={})


class Expectations(_Open):
    expected_facts: list[StrictStr] | None = None
    expected_response: StrictStr | None = None
    expected_retrieved_context: list[dict[str, Any]] | None = None
    expected_query_type: StrictStr | None = None
    expected_tools: list[StrictStr] | None = None
    expected_tool_calls: list[ExpectedToolCall] | None = None
    expected_filters: dict[str, Any] | None = None
    min_response_length: int | None = Field(default=None, ge=0, strict=True)
    guidelines: list[StrictStr] | None = None


class Metadata(_Open):
    test_id: StrictStr | None = None
    category: StrictStr | None = None
    difficulty: Literal["easy", "medium", "hard"] | None = None
    architecture: Literal["multi_agent", "rag", "tool_calling"] | None = None
    notes: StrictStr | None = None


class _Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inputs: dict[str, Any]
    outputs: Any = None
    expectations: Expectations = Field(default_factory=Expectations)
    metadata: Metadata = Field(default_factory=Metadata)


def validate_dataset(records: Iterable[Record]) -> list[Record]:
    """Check the records, and return them in the form that `mlflow.genai.evaluate` accepts (see `ready_for_evaluate`).

    Expectations and metadata may have additional keys, except keys that look like a misspelt known key.

    Raises:
        MonitoringError: with one line per problem, which names the record and the field.
    """
    checked = [dict(record) if isinstance(record, Mapping) else record for record in records]
    problems = [
        f"record {number}{_name_of(record)}: {problem}"
        for number, record in enumerate(checked)
        for problem in _problems(record)
    ]
    problems += _repeated_ids(checked)
    if problems:
        raise MonitoringError("\n".join(problems))
    return [ready_for_evaluate(record) for record in checked]


def ready_for_evaluate(record: Record) -> Record:
    """Return the record without expectations that are None, which MLflow 3.17.2's evaluate rejects.

    An `expected_query_type` of None means that no query type is expected; it becomes "none", which has the same meaning
    for `classifier_accuracy`.
    """
    if not record.get("expectations"):
        return record
    expectations = dict(record["expectations"])
    if "expected_query_type" in expectations and expectations["expected_query_type"] is None:
        expectations["expected_query_type"] = NO_QUERY_TYPE
    return {**record, "expectations": {name: value for name, value in expectations.items() if value is not None}}


def _problems(record: Any) -> list[str]:
    if not isinstance(record, dict):
        return [f"must be a dictionary with inputs, not {type(record).__name__}"]
    try:
        _Whole.model_validate(record)
    except ValidationError as error:
        found = [_line(detail) for detail in error.errors()]
    else:
        found = []
    for part, model in (("expectations", Expectations), ("metadata", Metadata)):
        given = record.get(part)
        found += [
            f"{part}.{key}: unknown, but similar to {meant}; write {meant} or another name"
            for key in (given if isinstance(given, dict) else {})
            if (meant := _nearly(key, model))
        ]
    return found


def _line(detail: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    value = detail["input"]
    match detail["type"]:
        case "missing":
            return f"{where}: missing; add it"
        case "extra_forbidden":
            if len(detail["loc"]) > 1:
                return f"{where}: unknown; an expected tool call has name and arguments"
            return f"{where}: unknown; a record has {', '.join(_Whole.model_fields)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where} = {value!r:.80}: must be a dictionary"
        case _:
            return wrong_value(where, f"{value!r:.80}", detail["msg"])


def _nearly(key: object, model: type[BaseModel]) -> str | None:
    """The known key that resembles an unknown key; None if there is none or the key is known."""
    known = list(model.model_fields)
    if key in known:
        return None
    similar = difflib.get_close_matches(str(key).lower().replace("-", "_"), known, n=1, cutoff=LIKENESS)
    return next(iter(similar), None)


def _test_id(record: Any) -> Any:
    metadata = record.get("metadata") if isinstance(record, dict) else None
    return metadata.get("test_id") if isinstance(metadata, dict) else None


def _name_of(record: Any) -> str:
    test_id = _test_id(record)
    return f" ({test_id})" if isinstance(test_id, str) else ""


def _repeated_ids(records: list[Any]) -> list[str]:
    first: dict[str, int] = {}
    problems = []
    for number, record in enumerate(records):
        test_id = _test_id(record)
        if isinstance(test_id, str) and first.setdefault(test_id, number) != number:
            problems.append(f"record {number} ({test_id}): record {first[test_id]} has the same metadata.test_id")
    return problems
