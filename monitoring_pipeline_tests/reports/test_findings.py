from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from monitoring_pipeline.reports.changes import changes
from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.figures import figures
from monitoring_pipeline.reports.findings import Finding, findings, new_errors, when
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.scorers import scorer_rows
from monitoring_pipeline.tables import SCORER_COVERAGE
from monitoring_pipeline_tests.reports.frames import (
    DAY,
    DAY_BEFORE,
    ERROR_COLUMNS,
    PERIOD,
    SCORE_COLUMNS,
    TOTAL_COLUMNS,
    WEEK_BEFORE,
    columns,
    coverage_row,
    day_of,
    empty_day,
    error_row,
    frame,
    incident_day,
    moment,
    performance_row,
    score_row,
    total_rows,
)


def found(data: ReportData) -> list[Finding]:
    return findings(data, changes(data), scorer_rows(data.quality_total, data.coverage), new_errors(data))


def steady(failed: int = 3, **frames: Any) -> ReportData:
    """24 hours of 100 traces each, with that many failures."""
    return day_of([performance_row(hour, "1", 100, failed, 2000.0) for hour in range(24)], **frames)


def test_the_incident_comes_first_with_its_size_time_and_place() -> None:
    first = found(incident_day())[0]
    assert (first.kind, first.severity, first.experiment_id) == ("incident", "critical", "1")
    assert (first.start, first.end, first.trace_id) == (moment(14), moment(15), "tr-14-000")
    assert first.what == "14:00 to 15:00 UTC, support-agent: 82 of 200 traces failed (41 %, usually 2.8 %)."
    assert first.details == [
        "Also p95 latency 9.1 s (usually 2.2 s), has_sources 0.52 (usually 0.95).",
        "Main error, new: retrieve: TimeoutError: vector index did not answer within 8 s (70 traces).",
        "Slow stage: retrieve, 8.0 s per call (usually 150 ms).",
    ]


def test_the_verdict_is_the_first_finding_and_the_whole_day() -> None:
    verdict = figures(incident_day())["verdict"]
    assert verdict["state"] == "trouble"
    assert verdict["headline"].startswith("14:00 to 15:00 UTC, support-agent: 82 of 200 traces failed")
    assert verdict["sentences"][-2:] == [
        "Over the whole day: 4,057 traces, 4.7 % failed.",
        "2 more findings need a look: see below.",
    ]


def test_a_normal_day_is_reported_as_normal() -> None:
    assert figures(steady())["verdict"] == {
        "state": "good",
        "headline": "Nothing stands out: 2,400 traces, 3.0 % failed.",
        "sentences": [],
    }
    assert figures(steady(0))["verdict"]["headline"].endswith("traces, none failed.")
    assert figures(empty_day())["verdict"]["state"] == "empty"


def test_an_incident_with_few_failures_is_a_warning() -> None:
    rows = [performance_row(hour, "1", 20, 4 if hour == 14 else 0, 2000.0) for hour in range(24)]
    [finding] = found(day_of(rows))
    assert (finding.kind, finding.severity) == ("incident", "warning")


ERRORS = columns([error_row("lookup", "Timeout after 3 s", 40, 9), error_row("save", "no disk", 2, 11)], ERROR_COLUMNS)


def test_errors_that_no_earlier_day_had_are_new() -> None:
    known = columns([error_row("lookup", "Timeout after 88 s", 1, 1)], ERROR_COLUMNS)
    [finding] = found(steady(errors=ERRORS, known_errors=known))
    assert (finding.kind, finding.severity, finding.trace_id) == ("new_error", "info", "tr-11-000")
    assert finding.what == "New error in 2 traces since 2026-01-14 11:05 UTC: save: no disk."


def test_a_new_error_of_many_traces_is_a_warning() -> None:
    none = columns([], ERROR_COLUMNS)
    assert [(f.severity, f.trace_id) for f in found(steady(errors=ERRORS, known_errors=none))] == [
        ("warning", "tr-09-000"),
        ("info", "tr-11-000"),
    ]


def test_without_earlier_days_no_error_is_new() -> None:
    data = steady(errors=ERRORS, known_errors=None)
    assert new_errors(data) is None
    assert found(data) == []
    assert [error["is_new"] for error in figures(data)["errors"]] == [None, None]


def test_a_new_error_mentioned_by_an_incident_is_not_reported_twice() -> None:
    assert [finding.kind for finding in found(incident_day())] == ["incident", "unscored", "unscored"]


def test_a_change_is_reported_if_it_is_beyond_noise_and_large_enough() -> None:
    own = [performance_row(hour, "1", 100, 6, 2000.0) for hour in range(24)]
    before = [performance_row(hour, "1", 100, 3, 2000.0) for hour in range(24)]
    rows = [*total_rows(own), *total_rows(before, DAY_BEFORE), *total_rows(before, WEEK_BEFORE)]
    [finding] = found(steady(6, totals=columns(rows, TOTAL_COLUMNS)))
    assert (finding.kind, finding.severity) == ("change", "warning")
    assert finding.what == ("Error rate worse: 6.0 %, after 3.0 % the day before, 3.0 % Wednesday a week before.")
    slightly = [performance_row(hour, "1", 100, 5, 2000.0) for hour in range(24)]
    rows = [*total_rows(own), *total_rows(slightly, DAY_BEFORE)]
    assert found(steady(6, totals=columns(rows, TOTAL_COLUMNS))) == []


def test_a_better_day_is_good_news_and_no_warning() -> None:
    own = [performance_row(hour, "1", 100, 3, 2000.0) for hour in range(24)]
    before = [performance_row(hour, "1", 100, 30, 4000.0) for hour in range(24)]
    data = steady(3, totals=columns([*total_rows(own), *total_rows(before, DAY_BEFORE)], TOTAL_COLUMNS))
    assert [(f.severity, f.what) for f in found(data)] == [
        ("info", "Error rate better: 3.0 %, after 30 % the day before."),
        ("info", "P95 latency better: 2.0 s, after 4.0 s the day before."),
    ]
    assert figures(data)["verdict"]["state"] == "good"


def test_the_mean_of_a_scorer_with_a_pass_rate_is_not_reported() -> None:
    rows = [score_row(period, "1", "polite", 2000, rate) for period, rate in ((PERIOD.name, 0.7), (DAY_BEFORE, 0.95))]
    [finding] = found(steady(scores=columns(rows, SCORE_COLUMNS)))
    assert finding.what == "polite: pass rate worse: 70 %, after 95.0 % the day before."


def test_traces_that_could_not_be_read_are_reported() -> None:
    unread = [{"trace_id": f"tr-{n}", "reason": "its spans\nare missing"} for n in (2, 1)]
    (finding,) = (each for each in found(replace(steady(), unread=unread)) if each.kind == "unread")
    assert finding.severity == "warning"
    assert finding.what == "2 traces could not be read and are in no figure."
    assert finding.details == ["They are in quarantine and are tried again. An example: tr-1: its spans are missing."]


def test_unscored_traces_are_reported() -> None:
    rows = [
        coverage_row(1, "1", "judge", archived=100, eligible=100, scored=80, failed=10),
        coverage_row(1, "1", "fine", archived=100, eligible=100, scored=99, failed=1),
    ]
    assert [(f.severity, f.what) for f in found(steady(coverage=frame(SCORER_COVERAGE, rows)))] == [
        ("warning", "judge failed on 10 of 90 traces."),
        ("info", "judge has not scored all eligible traces: 10 pending of 100."),
    ]


@pytest.mark.parametrize(
    ("period", "start", "end", "expected"),
    [
        (Period.day(DAY), 14, 16, "14:00 to 16:00 UTC"),
        (Period.day(DAY), 22, 24, "22:00 to 24:00 UTC"),
        (Period.week_of(DAY), 14, 16, "Wed 2026-01-14 14:00 to 16:00 UTC"),
        (Period.week_of(DAY), 22, 24, "Wed 2026-01-14 22:00 to 24:00 UTC"),
        (Period.week_of(DAY), 23, 26, "Wed 2026-01-14 23:00 to Thu 02:00 UTC"),
    ],
)
def test_times_are_relative_to_the_period(period: Period, start: int, end: int, expected: str) -> None:
    data = replace(empty_day(), period=period)
    assert when(data, pd.Timestamp(moment(start)), pd.Timestamp(moment(end))) == expected


def test_names_and_messages_are_cut_to_a_line() -> None:
    errors = columns([error_row("s" * 500, "Bad\n\x00" + "m" * 10_000, 40, 9)], ERROR_COLUMNS)
    [finding] = found(steady(errors=errors, known_errors=columns([], ERROR_COLUMNS)))
    assert len(finding.what) < 400
    assert not re.search("[\x00\n]", finding.what)
