"""A dataset: records for `mlflow.genai.evaluate`, and their origin.

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
    """The origin of a dataset, sufficient to rebuild it.

    `query` has all parameters, `versions` the version of each table read (empty if the traces were passed in), and
    `scorer_digests` the digests of the scorers whose results were used. `without_inputs` is the number of traces that
    were left out because their inputs are unknown.
    """

    query: Mapping[str, Any]
    versions: Mapping[str, int] = field(default_factory=dict)
    scorer_digests: Mapping[str, str] = field(default_factory=dict)
    without_inputs: int = 0


class Dataset(list[Record]):
    """A list of records with their `origin`, which is None for records written by hand."""

    def __init__(self, records: Iterable[Record] = (), origin: Origin | None = None):
        super().__init__(records)
        self.origin = origin


def canonical(value: Any) -> str:
    """Return JSON that is identical for equal values and can be encoded as UTF-8."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text if _is_unicode(text) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogate, which JSON may contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest_of(records: Iterable[Record]) -> str:
    """Return the SHA-256 (hexadecimal) of the records in order, which equals the SHA-256 of their JSONL file."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{canonical(record)}\n".encode())
    return digest.hexdigest()


def with_guidelines(
    records: Iterable[Record], guidelines: Sequence[str] | Callable[[Record], Sequence[str]]
) -> list[Record]:
    """Return copies of the records with `guidelines` added to the expectation of that name, for ExpectationsGuidelines.

    `guidelines` applies to every record, or is a function that returns the guidelines of a record.
    """
    return [_guided(record, guidelines(record) if callable(guidelines) else guidelines) for record in records]


def _guided(record: Record, guidelines: Sequence[str]) -> Record:
    expectations = record.get("expectations") or {}
    own = [*expectations.get("guidelines", []), *guidelines]
    return {**record, "expectations": {**expectations, "guidelines": own}} if own else dict(record)
