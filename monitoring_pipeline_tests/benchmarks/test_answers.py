"""Both sides of the benchmarks give the same answers; here on few traces, and nothing is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import aggregates, archiving, measuring, stores
from benchmarks.measuring import DifferentAnswersError, check_answers, same
from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline_tests.benchmarks import works

TRACES = 60


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Works run in this process, which has imported what they need."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "measured", lambda work, *arguments: measuring.run(work(*arguments)))


@pytest.mark.usefixtures("here")
def test_our_aggregates_equal_duckdbs(tmp_path: Path) -> None:
    aggregates.make_lake(tmp_path, TRACES)
    check_answers(aggregates.our_hours, aggregates.duckdb_hours, str(tmp_path))
    check_answers(aggregates.our_spans, aggregates.duckdb_spans, str(tmp_path))


@pytest.mark.usefixtures("here")
def test_the_archive_has_the_traces_that_a_search_finds(tmp_path: Path) -> None:
    address = stores.fill_store(tmp_path, TRACES)
    with global_tracking_uri(address):
        check_answers(archiving.archive_by_sql, archiving.search_traces, address)


def test_different_answers_are_reported() -> None:
    with pytest.raises(DifferentAnswersError, match="one and two differ: 1 and 2"):
        check_answers(works.one, works.two)


def test_numbers_are_the_same_to_nine_digits() -> None:
    assert same({"a": (1.0, None)}, {"a": (1.0 + 1e-12, None)})
    assert not same({"a": (1.0, None)}, {"a": (1.001, None)})
    assert not same({"a": 1.0}, {"b": 1.0})
