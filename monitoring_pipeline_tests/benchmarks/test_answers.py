"""Both sides of the benchmarks give the same answers; here on few traces, and nothing is timed."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from benchmarks import aggregates, archiving, stores
from benchmarks.measuring import DifferentAnswersError, check_answers, same

TRACES = 60


def test_our_aggregates_equal_duckdbs(tmp_path: Path) -> None:
    aggregates.make_lake(tmp_path, TRACES)
    check_answers(aggregates.our_hours, aggregates.duckdb_hours, str(tmp_path))
    check_answers(aggregates.our_spans, aggregates.duckdb_spans, str(tmp_path))


def test_the_archive_has_the_traces_that_a_search_finds(tmp_path: Path) -> None:
    address = stores.fill_store(tmp_path, TRACES)
    check_answers(archiving.archive_by_sql, archiving.search_traces, address)


def one() -> Generator[None, None, int]:
    yield
    yield
    return 1


def two() -> Generator[None, None, int]:
    yield
    yield
    return 2


def test_different_answers_are_reported() -> None:
    with pytest.raises(DifferentAnswersError, match="one and two differ: 1 and 2"):
        check_answers(one, two)


def test_numbers_are_the_same_to_nine_digits() -> None:
    assert same({"a": (1.0, None)}, {"a": (1.0 + 1e-12, None)})
    assert not same({"a": (1.0, None)}, {"a": (1.001, None)})
    assert not same({"a": 1.0}, {"b": 1.0})
