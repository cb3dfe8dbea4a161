r"""MLflow's trace filters, evaluated on the rows of `agent_traces`.

MLflow's parser reads the filter. Conditions behave as in MLflow 3.17.2 on SQLite
(`_get_filter_clauses_for_search_traces` in mlflow/store/tracking/sqlalchemy_store.py), including its oddities: `!=` on
a missing tag does not match; one single span must meet all span conditions and must not start more than 10 s before a
lower bound on `timestamp_ms`; LIKE is case-sensitive and has no escape character; ILIKE folds only A-Z;
`span.attributes.x` is a pattern over the span's JSON text, so that `=` never matches and `!=` always does; the last of
several `run_id =` counts.

Known differences from MLflow:

- RLIKE uses the engine's regular expressions (Rust or Java), not Python's. Look-around, back-references and named
  groups raise an error; `$`, `.`, `\w` and `(?i)` can differ at line ends and outside ASCII; a `{` that is a literal in
  Python is an error in the engine.
- Links that MLflow stores apart from the trace are not archived: `run_id =` finds the run that logged a trace, not a
  later `link_traces_to_run`; `prompt` reads the tag that MLflow writes together with its link.
- A session's feedback counts for the trace that carries it. In MLflow it counts for every trace of the session.
- MLflow writes each number of a feedback into a trace's JSON as a float: `= '5'` and `= '5.0'` find both, and LIKE and
  RLIKE see 5.0.
- MLflow's filters do not see spans stored outside its database; these filters do. A span logged without a type is
  UNKNOWN here and has no type there.
"""

from __future__ import annotations

import functools
import json
import operator
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.errors import one_line

if TYPE_CHECKING:
    from pyspark.sql import Column

Value = str | int | float | tuple[str, ...] | None

TRACE_NAME_TAG = "mlflow.traceName"
LINKED_PROMPTS_TAG = "mlflow.linkedPrompts"
SOURCE_RUN_METADATA = "mlflow.sourceRun"
# MLflow stores these two in numeric columns and compares them only as a whole.
NUMERIC_METADATA = {"mlflow.trace.tokenUsage", "mlflow.trace.cost"}

SPAN_COLUMNS = {"name": "name", "type": "span_type", "status": "status"}
SPAN_CLOCK_SKEW_MS = 10_000  # MLflow's _SPAN_SEARCH_TIMESTAMP_TOLERANCE_MS

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# Look-around, conditional and atomic groups, named groups (the engines spell them differently), back-references, \Z.
PYTHON_ONLY_REGEX = re.compile(r"\(\?(?:[=!>(P]|<[=!])|(?<!\\)(?:\\\\)*\\[1-9Z]")
SQLITE_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
LOWER_ASCII = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

# MLflow stores each span as the same JSON object as in trace_json, with keys in this order, but non-ASCII unescaped.
SPANS_START = '"data": {"spans": ['
NEXT_SPAN = r'\}, \{"trace_id": ("[^"]*", "span_id": "[^"]*", "parent_span_id": )'
SEPARATOR = "\x1e"  # a raw control character cannot occur in JSON text
BACKSLASH = "\ue000"  # nor can a raw non-ASCII character in the JSON text that Python writes


@dataclass(frozen=True)
class Condition:
    """One condition of a trace filter, as MLflow resolves it.

    `kind` is attribute, tag, request_metadata, span, feedback, expectation or issue; `key` is the name within that kind
    (MLflow resolves `name` to the tag mlflow.traceName, `text` to the span's content, and so on); `comparator` is
    upper-case; `value` is a tuple for IN and NOT IN, None for IS NULL and IS NOT NULL.
    """

    kind: str
    key: str
    comparator: str
    value: Value


def parse_filter(filter_string: str) -> list[Condition]:
    """Return the conditions of an MLflow trace filter, combined with AND; empty for an empty filter.

    Raises:
        ValueError: MLflow rejects the filter, or the archive cannot evaluate it; a one-line reason.
    """
    from mlflow.utils.search_utils import SearchTraceUtils

    try:
        conditions = [
            Condition(clause["type"], clause["key"], clause["comparator"].upper(), clause["value"])
            for clause in SearchTraceUtils.parse_search_filter_for_search_traces(filter_string)
        ]
        for condition in conditions:
            _check(condition)
        _span_start_ms(conditions)
    except Exception as error:  # MLflow's parser may raise any error on malformed text
        raise ValueError(f"trace filter {filter_string!r}: {one_line(error)}") from error
    return conditions


def matches(filter_string: str | None) -> Column:
    """Return a boolean column, never null: whether a row of `agent_traces` meets the MLflow trace filter.

    None or an empty filter matches every row. The columns trace_id, client_request_id, trace_info, duration_ms, tags,
    metadata, spans, assessments and trace_json are required only if the filter uses them. Spark considers conditions on
    spans or assessments non-deterministic: use them in `where` or `withColumn`, not inside an aggregate.

    Raises:
        ValueError: see `parse_filter`.
    """
    from pyspark.sql import functions as F

    conditions = parse_filter(filter_string) if filter_string else []
    clauses = [_clause(condition) for condition in _last_run_only(conditions) if condition.kind != "span"]
    if any(condition.kind == "span" for condition in conditions):
        clauses.append(_one_span_meets(conditions))
    never_null = (F.coalesce(clause, F.lit(False)) for clause in clauses)
    return functools.reduce(operator.and_, never_null, F.lit(True))


def _any_element(elements: Column, meets: Callable[[Column], Column]) -> Column:
    """Whether an element of the array meets a condition; never null."""
    from pyspark.sql import functions as F

    found = F.coalesce(F.exists(elements, meets), F.lit(False))
    # Sail 0.7.2 fails on a lambda that is pushed down into a Delta scan; non-deterministic conditions are not pushed
    # down. Optimizers split AND and OR, but not this !=, not even under a NOT.
    return found != (F.rand() < 0)


def _check(condition: Condition) -> None:
    """Raise the errors that MLflow's search raises after parsing, and ValueError for filters that crash it."""
    from mlflow.utils.search_utils import SearchTraceUtils

    kind, key, comparator, value = condition.kind, condition.key, condition.comparator, condition.value
    if not (
        SearchTraceUtils.is_issue(kind, key, comparator)
        or SearchTraceUtils.is_attribute(kind, key, comparator)
        or SearchTraceUtils.is_tag(kind, comparator)
        or SearchTraceUtils.is_request_metadata(kind, comparator)
        or SearchTraceUtils.is_span(kind, key, comparator)
        or SearchTraceUtils.is_assessment(kind, key, comparator)
    ):
        raise ValueError(f"Invalid search expression type '{kind}'")
    if isinstance(value, tuple) and (comparator not in ("IN", "NOT IN") or key.startswith("attributes.")):
        raise ValueError(f"{kind}.{key} {comparator} takes one quoted value, not a list")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} does not fit in 64 bits")
    if kind == "request_metadata" and key in NUMERIC_METADATA and comparator in ("LIKE", "ILIKE", "RLIKE"):
        raise ValueError(f"Comparator '{comparator}' is not supported for reserved metadata '{key}'")
    if kind == "tag" and key == LINKED_PROMPTS_TAG and (comparator != "=" or str(value).count("/") != 1):
        raise ValueError('the form of a prompt condition is prompt = "name/version"')
    if comparator == "RLIKE" and PYTHON_ONLY_REGEX.search(str(value)):
        raise ValueError("the archive does not support RLIKE with look-around, named groups, back-references or \\Z")


def _last_run_only(conditions: list[Condition]) -> list[Condition]:
    """The conditions with only the last `run_id = …`, and without it if its value is empty, as in MLflow."""
    runs = [
        c for c in conditions if c.kind == "request_metadata" and c.key == SOURCE_RUN_METADATA and c.comparator == "="
    ]
    return [c for c in conditions if c not in runs] + [c for c in runs[-1:] if c.value]


def _clause(condition: Condition) -> Column:
    from pyspark.sql import functions as F

    kind, key, comparator, value = condition.kind, condition.key, condition.comparator, condition.value
    if kind == "attribute":
        return _attribute_clause(condition)
    if kind == "tag" and key == LINKED_PROMPTS_TAG:
        name, version = str(value).split("/")
        return F.col("tags")[key].contains(json.dumps({"name": name, "version": version}))
    if kind in ("tag", "request_metadata"):
        return _compare(F.col("tags" if kind == "tag" else "metadata")[key], comparator, value)
    if kind == "issue":
        return _any_element(F.col("assessments"), lambda entry: (entry["kind"] == "issue") & (entry["name"] == value))
    return _assessment_clause(condition)


def _attribute_clause(condition: Condition) -> Column:
    from pyspark.sql import functions as F

    started_ms = F.unix_millis(F.col("trace_info")["timestamp"])
    match condition.key:
        case "timestamp_ms":
            return _compare_number(started_ms, condition.comparator, _as_sqlite_number(condition.value))
        case "execution_time_ms":
            return _compare_number(F.col("duration_ms"), condition.comparator, _as_sqlite_number(condition.value))
        case "end_time_ms":
            ended_ms = started_ms + F.coalesce(F.col("duration_ms"), F.lit(0.0))
            return _compare_number(ended_ms, condition.comparator, condition.value)
        case "status":
            column = F.col("trace_info")["status"]
        case "request_id":
            column = F.col("trace_id")
        case _:
            column = F.col(condition.key)  # client_request_id
    return _compare(column, condition.comparator, condition.value)


def _as_sqlite_number(value: Value) -> Value:
    """The value as SQLite compares it with a numeric column: quoted text becomes a number if possible."""
    return float(value) if isinstance(value, str) and SQLITE_NUMBER.fullmatch(value) else value


def _compare_number(column: Column, comparator: str, value: Value) -> Column:
    from pyspark.sql import functions as F

    if isinstance(value, str):  # SQLite sorts every number before every text
        return column.isNotNull() & F.lit(comparator in ("<", "<=", "!="))
    return COMPARISONS[comparator](column, F.lit(value))


def _compare(column: Column, comparator: str, value: Value) -> Column:
    """Compare `column` with `value` as SQLite compares text; null if the column is null, except for IS NULL."""
    from pyspark.sql import functions as F

    match comparator, value:
        case "IS NULL", _:
            return column.isNull()
        case "IS NOT NULL", _:
            return column.isNotNull()
        case "IN", tuple():
            return column.isin(*value)
        case "NOT IN", tuple():
            return ~column.isin(*value)
        case "LIKE", str():
            return column.like(value.replace("\\", "\\\\"))  # SQLite's LIKE has no escape character
        case "ILIKE", str():
            lower = F.translate(column, string.ascii_uppercase, string.ascii_lowercase)
            return _compare(lower, "LIKE", value.translate(LOWER_ASCII))
        case "RLIKE", str():
            return column.rlike(value) if _is_regex(value) else F.lit(False)
        case _:
            return COMPARISONS[comparator](column, F.lit(value))


def _is_regex(pattern: str) -> bool:
    """Whether the pattern is a valid regular expression; in MLflow an invalid one matches nothing."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _assessment_clause(condition: Condition) -> Column:
    from pyspark.sql import functions as F

    # Only trace_json, which lists assessments in the same order, shows which of them are overridden. Drop its spans
    # first: a NaN in them fails the parser.
    info = F.concat(F.substring_index("trace_json", f", {SPANS_START}", 1), F.lit("}"))
    parsed = F.from_json(info, "info STRUCT<assessments: ARRAY<STRUCT<valid: BOOLEAN>>>")["info"]["assessments"]
    stored = F.coalesce(parsed, F.array().cast("array<struct<valid: boolean>>"))

    def is_meant(entry: Column) -> Column:
        assessment = entry["assessments"]
        meant = (
            (assessment["kind"] == condition.kind)
            & (assessment["name"] == condition.key)
            & F.coalesce(entry["stored"]["valid"], F.lit(True))
        )
        if condition.comparator in ("IS NULL", "IS NOT NULL"):
            return meant
        return meant & _compare_json(F.coalesce(assessment["value"], F.lit("null")), condition)

    found = _any_element(F.arrays_zip("assessments", stored.alias("stored")), is_meant)
    return ~found if condition.comparator == "IS NULL" else found


def _compare_json(column: Column, condition: Condition) -> Column:
    """Compare the JSON of an assessment's value: numbers as numbers, `=` with or without quotes, patterns as text."""
    from pyspark.sql import functions as F

    comparator, value = condition.comparator, condition.value
    if comparator in ("<", "<=", ">", ">="):
        number = F.when(column.rlike("^-?[0-9]"), column.cast("double"))
        return _compare_number(number, comparator, value)
    if comparator in ("=", "!="):
        equal = column.isin(_json_spellings(str(value)))
        return equal if comparator == "=" else ~equal
    return _compare(column, comparator, value)


def _json_spellings(value: str) -> list[str]:
    whole = re.fullmatch(r"(-?[0-9]+)(?:\.0)?", value)
    return [value, json.dumps(value), *([whole[1], f"{whole[1]}.0"] if whole else [])]


def _one_span_meets(conditions: list[Condition]) -> Column:
    from pyspark.sql import functions as F

    span_conditions = [condition for condition in conditions if condition.kind == "span"]
    earliest_ms = _span_start_ms(conditions)

    def meets(entry: Column) -> Column:
        span = entry["spans"]
        clauses = [span["span_id"].isNotNull()]  # for a trace without spans, `split` still returns one empty content
        if earliest_ms is not None:
            clauses.append(F.unix_micros(span["start_time"]) >= F.lit(earliest_ms * 1000))
        clauses.extend(_span_clause(span, entry, condition) for condition in span_conditions)
        return functools.reduce(operator.and_, clauses)

    columns = [F.col("spans")]
    if any(condition.key not in SPAN_COLUMNS for condition in span_conditions):
        columns.append(_span_contents().alias("content"))
    return _any_element(F.arrays_zip(*columns), meets)


def _span_clause(span: Column, entry: Column, condition: Condition) -> Column:
    comparator, value = condition.comparator, condition.value
    if condition.key in SPAN_COLUMNS:
        return _compare(span[SPAN_COLUMNS[condition.key]], comparator, value)
    if condition.key == "content":
        return _compare(entry["content"], comparator, value)
    name = condition.key.removeprefix("attributes.")
    if len(name) > 1 and name.startswith("`") and name.endswith("`"):
        name = name[1:-1]
    if comparator != "RLIKE":
        return _compare(entry["content"], comparator, f'%"{name}"{value}%')
    pattern = str(value)
    opening = r'"\\"' if pattern.startswith("^") else r'"\\".*'
    closing = r'\\"' if pattern.endswith("$") else ""
    return _compare(
        entry["content"], comparator, f'"{name}": {opening}{pattern.removeprefix("^").removesuffix("$")}{closing}'
    )


def _span_start_ms(conditions: list[Condition]) -> float | None:
    """The earliest start, in ms since 1970, of a span that MLflow accepts under these conditions; None: any."""
    bounds = [
        c.value for c in conditions if (c.kind, c.key) == ("attribute", "timestamp_ms") and c.comparator in (">", ">=")
    ]
    if not bounds or all(condition.kind != "span" for condition in conditions):
        return None
    numbers = [bound for bound in bounds if isinstance(bound, int | float)]
    if len(numbers) < len(bounds):
        raise ValueError("a lower bound on timestamp_ms next to a span condition must be a number without quotes")
    return max(numbers) - SPAN_CLOCK_SKEW_MS


def _span_contents() -> Column:
    """The JSON text of each span, in the order of `spans`, with non-ASCII characters unescaped."""
    from pyspark.sql import functions as F

    escaped = F.regexp_replace(F.substring_index("trace_json", SPANS_START, -1), r"\]\}\}$", "")
    # Undo only the \uXXXX escapes: hide all other escapes, then parse the text as one JSON string.
    text = F.replace(escaped, F.lit("\\\\"), F.lit(BACKSLASH * 2))
    text = F.regexp_replace(text, r'\\(["nrtbf]|u00[01])', f"{BACKSLASH}$1")
    text = F.replace(F.replace(text, F.lit('"'), F.lit('\\"')), F.lit(BACKSLASH), F.lit("\\\\"))
    text = F.get_json_object(F.concat(F.lit('{"text": "'), text, F.lit('"}')), "$.text")
    # Most traces have no such escape and skip this. The cast: Sail has two string types, and `split` accepts only one.
    text = F.when(F.contains("trace_json", F.lit("\\u")), text).otherwise(escaped.cast("string"))
    return F.split(F.regexp_replace(text, NEXT_SPAN, f'}}{SEPARATOR}{{"trace_id": $1'), SEPARATOR)
