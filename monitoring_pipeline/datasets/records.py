"""What a dataset is: records for `mlflow.genai.evaluate`, and what they were made of.

A record is {"inputs": {…}, "outputs": …, "expectations": {…}, "metadata": {…}}; all but the inputs may be missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """What a dataset was made of, enough to make it again.

    `query` holds all parameters; `versions` the commit of each table that was read, none where the traces were given;
    `scorer_digests` those of the scorers whose results were asked. `without_inputs` counts the traces that were left
    out as nothing is known of their inputs.
    """

    query: Mapping[str, Any]
    versions: Mapping[str, int] = field(default_factory=dict)
    scorer_digests: Mapping[str, str] = field(default_factory=dict)
    without_inputs: int = 0


class Dataset(list[Record]):
    """A list of records that knows its `origin`; None where a person put the records together."""

    def __init__(self, records: Iterable[Record] = (), origin: Origin | None = None):
        super().__init__(records)
        self.origin = origin


def canonical(value: Any) -> str:
    """JSON that is the same for equal values, and can be written as UTF-8."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text if _is_unicode(text) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _is_unicode(text: str) -> bool:
    """Whether there is no lone surrogate in it, which JSON may hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest_of(records: Iterable[Record]) -> str:
    """The SHA-256 of the records in their order, in hexadecimal: that of the lines of their JSONL file."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{canonical(record)}\n".encode())
    return digest.hexdigest()


def with_guidelines(
    records: Iterable[Record], guidelines: Sequence[str] | Callable[[Record], Sequence[str]]
) -> list[Record]:
    """The records, each with `guidelines` added to its expectation of that name, for ExpectationsGuidelines.

    They are the same for every record, or what a function says of each. The records given stay as they are.
    """
    return [_guided(record, guidelines(record) if callable(guidelines) else guidelines) for record in records]


def _guided(record: Record, guidelines: Sequence[str]) -> Record:
    expectations = record.get("expectations") or {}
    own = [*expectations.get("guidelines", []), *guidelines]
    return {**record, "expectations": {**expectations, "guidelines": own}} if own else dict(record)
