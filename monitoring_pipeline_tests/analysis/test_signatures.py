"""Signatures of error messages; Python and the engine must agree on every message."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import functions as F

from monitoring_pipeline.analysis.signatures import (
    NO_MESSAGE,
    SIGNATURE_CHARACTERS,
    error_signature,
    signature_column,
    telling_line,
    telling_line_column,
)
from monitoring_pipeline.resources.spark import SparkResource

SIGNATURES = {
    "ValueError: no user 'mia_li_3668'": "ValueError: no user <value>",
    "KeyError: \"a 'b' c\"": "KeyError: <value>",
    "no such column: `order id`": "no such column: <value>",
    "can't read user's file": "can't read user's file",
    "cut off in 'the middle": "cut off in <value>",
    "timed out after 30s": "timed out after <*>",
    "timed out after 2.5 s": "timed out after <*> s",
    "expected -1, got +1,234.5": "expected -<*>, got +<*>",
    "object at 0x7f8a9c": "object at <*>",
    "commit 59a200c6deadbeef": "commit <*>",
    "trace tr-e96eb5a292eb5cc2160d3b615f344840 is gone": "trace tr-<*> is gone",
    "no row 550e8400-e29b-41d4-a716-446655440000": "no row <*>",
    "flight HAT136 not available on date 2024-05-20": "flight <*> not available on date <time>",
    "at 2026-01-01T05:00:00.123Z, 2026-01-01 05:00+01:00 and 12:30:01": "at <time>, <time> and <time>",
    "no file /var/lib/agent/x.db": "no file <path>",
    "no file C:\\Users\\Ada\\x.txt!": "no file <path>!",
    "no file ~/x, ./y or ../z/a": "no file <path>, <path> or <path>",
    "src/agent/tools.py:12: bad": "<path>:<*>: bad",
    "and/or n/a": "and/or n/a",
    "https://api.example.com/v1/chat?x=1 refused": "<url> refused",
    "10.0.0.1:8080 refused": "<*> refused",
    "Error code: 429 - {'error': {'limit': 30000}}": "Error code: <*> - {<value>: {<value>: <*>}}",
    "first line 1\nsecond line": "first line <*>",
    "\n\t  tabs\tand   blanks \r\n": "tabs and blanks",
    "Traceback (most recent call last):\n  File \"a.py\", line 3\nKeyError: 0\n": "KeyError: <*>",
    "": NO_MESSAGE,
    " \n ": NO_MESSAGE,
    "x" * 5000: "x" * SIGNATURE_CHARACTERS,
    "said '" + "x" * 5000: "said <value>",
    "größer als 5 Ä\u2028x": "größer als <*> Ä\u2028x",
}  # fmt: skip

WORDS = ["0x", "42", "be", "deadbeef", "2026-01-01", "T05:00", "://", "$1", "Traceback (most recent call last):"]
FRAGMENTS = [*WORDS, *"'\"`/\\~.:- \n\t\x00\x85\u2028<>{7a_é"]


@pytest.mark.parametrize("message", SIGNATURES)
def test_what_differs_between_occurrences_is_masked(message: str) -> None:
    assert error_signature(message) == SIGNATURES[message]


def test_no_message_has_a_signature() -> None:
    assert error_signature(None) == NO_MESSAGE


@given(st.integers(0), st.uuids(), st.datetimes(), st.text("abcdefghij_0123456789", min_size=1))
def test_two_occurrences_have_one_signature(number: int, uuid: object, moment: object, name: str) -> None:
    def message(*values: object) -> str:
        return "run {} of {} at {} failed: no {!r} in {}".format(*values)

    other = message(1, "550e8400-e29b-41d4-a716-446655440000", "2026-01-01 05:00:00", "x", "/tmp/x1")
    assert error_signature(message(number, uuid, moment, name, f"/var/{name}")) == error_signature(other)


@given(st.text(max_size=400))
def test_any_message_has_a_short_signature_on_one_line_without_digits(message: str) -> None:
    signature = error_signature(message)
    assert 0 < len(signature) <= SIGNATURE_CHARACTERS
    assert "\n" not in signature
    assert not set(signature) & set("0123456789")


def test_the_engine_computes_the_same_signature(spark: SparkResource) -> None:
    draw = random.Random(5)
    messages = [*SIGNATURES, *("".join(draw.choices(FRAGMENTS, k=draw.randrange(1, 25))) for _ in range(3000))]
    rows = spark.session.createDataFrame(list(enumerate([None, *messages])), "number int, message string")
    line = telling_line_column(F.col("message"))
    found = rows.select("number", line.alias("line"), signature_column(line).alias("signature")).collect()
    for row in found:
        message = messages[row["number"] - 1] if row["number"] else None
        assert (row["line"], row["signature"]) == (telling_line(message), error_signature(message)), repr(message)
    assert len(found) == len(messages) + 1
