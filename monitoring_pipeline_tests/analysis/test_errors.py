"""Errors grouped by signature and span."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from monitoring_pipeline.analysis.errors import GROUP, NO_FAILED_SPAN, SAMPLE_TRACES, error_groups, new_groups
from monitoring_pipeline.analysis.signatures import NO_MESSAGE
from monitoring_pipeline.resources.spark import SparkResource

START = datetime(2026, 1, 1, 5, tzinfo=UTC)
SPAN = "struct<span_id: string, name: string, span_type: string, status_message: string>"
SCHEMA = f"trace_id string, trace_hour timestamp, timestamp timestamp, error_spans array<{SPAN}>"


def groups_of(spark: SparkResource, *traces: Sequence[tuple[str, str, str | None]] | None) -> pd.DataFrame:
    """The groups of errors of these traces, one a minute: each the name, type and message of its failed spans."""
    rows = [
        (f"t{n}", START, START + n * timedelta(minutes=1), spans and [(f"s{i}", *span) for i, span in enumerate(spans)])
        for n, spans in enumerate(traces)
    ]
    return error_groups(spark.session.createDataFrame(rows, SCHEMA)).toPandas()


def summed(groups: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(groups[[*GROUP, "trace_count", "span_count"]].itertuples(index=False, name=None))


def test_traces_are_counted_by_signature_and_span(spark: SparkResource) -> None:
    found = groups_of(
        spark,
        [("book", "TOOL", "no seat 1")],
        [("book", "TOOL", "no seat 2"), ("book", "TOOL", "no seat 2"), ("book", "TOOL", "no seat 3")],
        [("change", "TOOL", "no seat 4")],
        [("book", "TOOL", None)],
        [("book", "TOOL", "")],
        None,
        [],
        [],
    )
    assert summed(found) == [
        (NO_FAILED_SPAN, None, None, 3, 0),
        (NO_MESSAGE, "book", "TOOL", 2, 2),
        ("no seat <*>", "book", "TOOL", 2, 4),
        ("no seat <*>", "change", "TOOL", 1, 1),
    ]
    seats = found.loc[2]
    assert list(seats["sample_trace_ids"]) == ["t0", "t1"]
    assert seats["sample_message"] == "no seat 1"
    assert seats["first_seen"] == pd.Timestamp("2026-01-01 05:00")
    assert seats["last_seen"] == pd.Timestamp("2026-01-01 05:01")


def test_only_the_innermost_of_nested_spans_with_the_same_message_counts(spark: SparkResource) -> None:
    found = groups_of(
        spark,
        [("agent", "AGENT", "KeyError: 'a'"), ("plan", "CHAIN", "KeyError: 'a'"), ("look up", "TOOL", "KeyError: 'a'")],
        [("agent", "AGENT", "2 tools failed"), ("look up", "TOOL", "KeyError: 'b'")],
        [("agent", "AGENT", None), ("look up", "TOOL", None)],
    )
    assert summed(found) == [
        ("KeyError: <value>", "look up", "TOOL", 2, 2),
        (NO_MESSAGE, "agent", "AGENT", 1, 1),
        (NO_MESSAGE, "look up", "TOOL", 1, 1),
        ("<*> tools failed", "agent", "AGENT", 1, 1),
    ]


def test_the_sample_is_the_first_traces_in_any_order_of_rows(spark: SparkResource) -> None:
    found = groups_of(spark, *[[("book", "TOOL", f"no seat {9 - n}")] for n in range(9)])
    assert [*found.loc[0, "sample_trace_ids"]] == [f"t{n}" for n in range(SAMPLE_TRACES)]
    assert found.loc[0, "sample_message"] == "no seat 9"


@pytest.mark.parametrize(("known", "new"), [([], ["a", "b"]), (["a"], ["b"]), (["a", "b"], []), (["c"], ["a", "b"])])
def test_new_groups_are_the_groups_not_seen_before(spark: SparkResource, known: list[str], new: list[str]) -> None:
    after = groups_of(spark, [("book", "TOOL", "a")], [("book", "TOOL", "b")])
    before = groups_of(spark, *[[("book", "TOOL", message)] for message in known])
    assert [*new_groups(after, before)["signature"]] == new
    elsewhere = groups_of(spark, [("change", "TOOL", "a")], [])
    assert len(new_groups(after, elsewhere)) == 2
    assert [*new_groups(elsewhere, after)["signature"]] == [NO_FAILED_SPAN, "a"]


def test_a_day_without_errors_has_no_new_groups(spark: SparkResource) -> None:
    none = groups_of(spark, []).iloc[:0]
    before = groups_of(spark, [("book", "TOOL", "a")])
    for known in (none, before):
        found = new_groups(none, known)
        assert found.empty
        assert [*found.columns] == [*before.columns]
