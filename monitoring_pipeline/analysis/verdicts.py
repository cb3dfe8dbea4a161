"""Verdicts: converts recorded values to scores, and decides whether a score passes."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import Column

UPPER_HALF = ">= 0.5"
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
SPACE = r"[\t-\r\x1c-\x1f\x85\p{Z}]*"  # whitespace as in Python's str.strip; the meaning of \s differs by engine
PASS_WORDS, FAIL_WORDS = ("true", "yes", "pass"), ("false", "no", "fail")
PASS_WORD = f"^{SPACE}({'|'.join(PASS_WORDS)}){SPACE}$"
FAIL_WORD = f"^{SPACE}({'|'.join(FAIL_WORDS)}){SPACE}$"
# The JSON of a pass or a fail: a boolean, or one of the words in any case, optionally surrounded by whitespace.
PASS_FAIL = rf'^(true|false|"( |\\[nrt])*(?i:{"|".join(PASS_WORDS + FAIL_WORDS)})( |\\[nrt])*")$'
JSON_NUMBER = r"^-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?$"


def passes(score: Column, pass_if: str | None) -> Column:
    """Whether a score meets `pass_if` (a comparison such as "<= 0"; None: the upper half, >= 0.5).

    Null without a score.
    """
    comparison = re.fullmatch(r"([<>=]+) *(.+)", pass_if or UPPER_HALF)
    if comparison is None:
        raise ValueError(f"pass_if = {pass_if!r}: must look like {UPPER_HALF}")
    return COMPARISONS[comparison[1]](score, float(comparison[2]))


def score_of(value: Column) -> Column:
    """The score of a value given as JSON, equal to `as_score` of the value itself.

    Null if the text is another word or not valid JSON.
    """
    from pyspark.sql import functions as F

    text = F.lower(F.get_json_object(F.concat(F.lit('{"value":'), value, F.lit("}")), "$.value"))
    return (
        F.when(text.rlike(PASS_WORD), 1.0)
        .when(text.rlike(FAIL_WORD), 0.0)
        .when(value.rlike(JSON_NUMBER), value.cast("double"))
    )


def as_score(value: Any) -> float | None:
    """The score of a value: 1 for true, yes, pass; 0 for false, no, fail; a number itself; else None."""
    if isinstance(value, bool | int | float):
        return float(value)
    word = value.strip().lower() if isinstance(value, str) else None
    return 1.0 if word in PASS_WORDS else 0.0 if word in FAIL_WORDS else None
