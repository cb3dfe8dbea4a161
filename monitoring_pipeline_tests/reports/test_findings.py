from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from monitoring_pipeline.analysis.statistics import cohen_kappa
from monitoring_pipeline.reports import findings
from monitoring_pipeline.reports.findings import Incident, Standout
from monitoring_pipeline.tables import (
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    TRACE_ERRORS,
)
from monitoring_pipeline_tests.reports.frames import (
    agreement_row,
    coverage_row,
    daily_quality,
    errors_at,
    frame,
    incident_day,
    moment,
    performance_row,
    quality_row,
)

NO_QUALITY = frame(HOURLY_QUALITY, [])


def steady_day(**odd_hour: float) -> pd.DataFrame:
    """100 traces an hour with 3 errors and a p95 of 2 s; at 14:00 as `odd_hour` says."""
    steady = {"traces": 100, "errors": 3, "p95": 2000.0}
    rows = []
    for hour in range(24):
        values = steady | odd_hour if hour == 14 else steady
        rows.append(performance_row(hour, "1", None, int(values["traces"]), int(values["errors"]), values["p95"]))
    return findings.all_names(frame(HOURLY_PERFORMANCE, rows))


def test_totals_count_a_trace_once() -> None:
    rows = [
        performance_row(5, "1", None, 30, 3, 100),
        performance_row(5, "1", "a", 20, 3, 100),
        performance_row(5, "1", "", 10, 0, 100),
        performance_row(6, "2", None, 10, 1, 100),
    ]
    totals = findings.totals(findings.all_names(frame(HOURLY_PERFORMANCE, rows)))
    assert (totals["trace_count"], totals["error_count"], totals["error_rate"]) == (40, 4, 0.1)
    assert totals["total_tokens"] == 40_000
    assert totals["cost_usd"] == pytest.approx(0.16)


def test_unknown_cost_is_not_zero() -> None:
    rows = [performance_row(5, "1", None, 30, 3, 100) | {"cost_usd": None}]
    assert math.isnan(findings.totals(findings.all_names(frame(HOURLY_PERFORMANCE, rows)))["cost_usd"])


def test_error_rate_stands_out() -> None:
    assert findings.standouts(steady_day(errors=41), NO_QUALITY) == [Standout("1", 14, "error rate", 0.41, 0.03)]


# by Wilson's formula the 95 % interval begins at 0.0776 for 13 errors in 100 and at 0.0853 for 14
@pytest.mark.parametrize(("errors", "stands_out"), [(13, False), (14, True)])
def test_error_rate_needs_its_whole_interval_above_the_margin(errors: int, stands_out: bool) -> None:
    assert bool(findings.standouts(steady_day(errors=errors), NO_QUALITY)) is stands_out


@pytest.mark.parametrize(("p95", "stands_out"), [(3999.0, False), (4000.0, True)])
def test_latency_stands_out_from_twice_the_median(p95: float, stands_out: bool) -> None:
    expected = [Standout("1", 14, "p95", 4000.0, 2000.0)] if stands_out else []
    assert findings.standouts(steady_day(p95=p95), NO_QUALITY) == expected


def test_an_hour_is_no_part_of_its_own_median() -> None:
    rows = [performance_row(hour, "1", None, 50, 1, p95) for hour, p95 in enumerate([1000.0, 1200.0, 1100.0, 2250.0])]
    performance = findings.all_names(frame(HOURLY_PERFORMANCE, rows))
    assert findings.standouts(performance, NO_QUALITY) == [Standout("1", 3, "p95", 2250.0, 1100.0)]


def test_few_traces_never_stand_out() -> None:
    assert findings.standouts(steady_day(traces=19, errors=19, p95=90_000), NO_QUALITY) == []
    assert len(findings.standouts(steady_day(traces=20, errors=20, p95=90_000), NO_QUALITY)) == 2


def test_three_other_hours_are_needed() -> None:
    day = steady_day(errors=90)
    three = day[day["hour"] >= moment(12)].head(3)
    four = day[day["hour"] >= moment(12)].head(4)
    assert findings.standouts(pd.DataFrame(three), NO_QUALITY) == []
    assert len(findings.standouts(pd.DataFrame(four), NO_QUALITY)) == 1


@pytest.mark.parametrize(
    ("usual", "scored", "mean", "stands_out"),
    [(0.9, 50, 0.5, True), (0.9, 19, 0.1, False), (0.9, 50, 0.8, False), (0.1, 50, 0.6, True)],
)
def test_quality_stands_out_when_its_interval_lies_apart(
    usual: float, scored: int, mean: float, stands_out: bool
) -> None:
    rows = [quality_row(hour, "1", "polite", 50, usual) for hour in range(24) if hour != 14]
    quality = findings.as_floats(frame(HOURLY_QUALITY, [*rows, quality_row(14, "1", "polite", scored, mean)]))
    expected = [Standout("1", 14, "score", mean, usual, "polite")] if stands_out else []
    assert findings.standouts(steady_day(), quality) == expected


def test_incidents_join_consecutive_hours_and_keep_the_worst() -> None:
    early, late = Standout("1", 13, "p95", 5000, 2000), Standout("1", 14, "p95", 9000, 2000)
    score = Standout("1", 14, "score", 0.5, 0.9, "polite")
    apart, other = Standout("1", 16, "p95", 5000, 2000), Standout("2", 15, "p95", 5000, 2000)
    assert findings.incidents([score, apart, late, other, early]) == [
        Incident("1", 13, 14, [late, score]),
        Incident("1", 16, 16, [apart]),
        Incident("2", 15, 15, [other]),
    ]


def test_the_summary_names_what_stands_out() -> None:
    data = incident_day()
    performance = findings.all_names(data.performance)
    scorers = findings.scorer_rows(data.daily_quality, data.coverage)
    found = findings.incidents(findings.standouts(performance, findings.as_floats(data.quality)))
    first, second, third = findings.summary(findings.totals(performance), found, scorers, data.experiment_names)
    assert first.startswith("14:00 UTC, support-agent: error rate 41 % against ")
    assert "p95 9.1 s against 2." in first
    assert "has_sources 0.52 against 0.9" in first
    assert second == "Over the whole day: 4,057 traces, of which 4.7 % failed."
    # one trace fails an hour, in 22 and 24 hours, for each of 3 scorers
    assert third == f"Eligible but not scored, over all scorers: {3 * (22 + 24)} failed."


def test_the_summary_gives_several_hours_as_a_range() -> None:
    found = [Incident("1", 22, 23, [Standout("1", 23, "score", 0.5, 0.9, "polite")]), Incident("2", 3, 3, [])]
    total = {"trace_count": 10.0, "error_count": 0.0, "error_rate": 0.0}
    assert findings.summary(total, found, findings.scorer_rows(NO_QUALITY, frame(SCORER_COVERAGE, [])), {}) == [
        "22:00 to 24:00 UTC, 1: polite 0.50 against 0.90 in the median of the other hours; "
        "1 more time stands out, shaded in the charts.",
        "Over the whole day: 10 traces, of which none failed.",
    ]


def test_scorer_rows_add_the_ledger_up_and_leave_stale_digests_out() -> None:
    coverage = [
        coverage_row(1, "1", "polite", archived=100, eligible=90, scored=80, failed=4),
        coverage_row(2, "1", "polite", archived=50, eligible=10, scored=10, failed=0),
        coverage_row(2, "1", "polite", archived=50, eligible=50, scored=50, failed=0, digest="old"),
        coverage_row(2, "1", "never", archived=50, eligible=50, scored=0, failed=50),
        coverage_row(2, "2", "never", archived=9, eligible=0, scored=0, failed=0),
    ]
    quality = daily_quality([quality_row(1, "1", "polite", 90, 0.8), quality_row(1, "1", "unledgered", 7, 0.5)])
    rows = findings.scorer_rows(quality, frame(SCORER_COVERAGE, coverage)).set_index(["experiment_id", "scorer"])
    assert list(rows.index) == [("1", "never"), ("1", "polite"), ("1", "unledgered"), ("2", "never")]
    polite = rows.loc[("1", "polite")]
    assert polite[["archived", "unsampled", "eligible", "scored", "failed", "pending"]].tolist() == [
        *(150, 50, 100, 90, 4, 6)
    ]
    assert (polite["covered"], polite["mean_score"]) == (0.9, 0.8)
    assert rows.loc[("1", "never"), "covered"] == 0
    assert math.isnan(float(str(rows.loc[("2", "never"), "covered"])))
    assert rows.loc[("1", "unledgered"), ["scored", "failed"]].tolist() == [7, 1]


def test_top_errors_count_traces_by_cause() -> None:
    twice = errors_at(5, 1)[0]
    twice |= {"trace_id": "twice", "error_spans": twice["error_spans"] * 2}
    bare = errors_at(4, 1)[0] | {"trace_id": "bare", "error_spans": None, "timestamp": None}
    errors = frame(TRACE_ERRORS, [*errors_at(14, 7), twice, bare])
    timeout = "TimeoutError: vector index did not answer within 8 s"
    assert [tuple(row.values()) for row in findings.top_errors(errors)] == [
        ("retrieve", timeout, 8, moment(5), "twice"),
        ("answer", "ValueError: no documents", 4, moment(5), "twice"),
        (findings.NO_SPAN, "\u2013", 1, moment(4), "bare"),
    ]
    assert len(findings.top_errors(errors, limit=1)) == 1


def test_an_exception_that_passes_up_counts_where_it_started() -> None:
    spans = [{"name": name, "status_message": "Timeout: 3 s"} for name in ("agent", "lookup")]
    errors = frame(TRACE_ERRORS, [errors_at(5, 1)[0] | {"error_spans": spans}])
    assert [(row["span_name"], row["trace_count"]) for row in findings.top_errors(errors)] == [("lookup", 1)]


def test_the_first_line_of_a_message_is_its_first_with_text() -> None:
    spans = [{"name": None, "status_message": "\n\n  no key\x00 'a'\nmore"}]
    errors = frame(TRACE_ERRORS, [errors_at(5, 1)[0] | {"error_spans": spans}])
    assert [(row["span_name"], row["message"]) for row in findings.top_errors(errors)] == [("\u2013", "no key 'a'")]


def test_an_experiment_without_incident_is_quiet() -> None:
    data = incident_day()
    quiet = replace(data, performance=data.performance[data.performance["experiment_id"] == "2"])
    assert findings.standouts(findings.all_names(quiet.performance), findings.as_floats(NO_QUALITY)) == []


def test_agreement_adds_up_days_and_nothing_else() -> None:
    rows = [
        agreement_row(0, "1", "judge", "human", "judge", (4, 1, 0, 3)),
        agreement_row(5, "1", "judge", "human", "judge", (2, 0, 1, 2)),
        agreement_row(5, "1", "judge", "digest", "judge", (1, 0, 0, 0)),
        agreement_row(5, "1", "judge", "human", "thumbs_up", (0, 1, 0, 0)),
        agreement_row(5, "2", "judge", "human", "judge", (0, 0, 1, 0)),
        agreement_row(5, "1", "other", "human", "judge", (0, 0, 0, 1)),
    ]
    found = findings.agreement_rows(frame(SCORER_AGREEMENT, rows)).to_dict("records")
    keys = ["scorer", "experiment_id", "reference", "reference_name", "compared"]
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("judge", "1", "human", "judge", 13),
        ("judge", "1", "human", "thumbs_up", 1),
        ("judge", "1", "digest", "judge", 1),
        ("judge", "2", "human", "judge", 1),
        ("other", "1", "human", "judge", 1),
    ]
    assert (found[0]["pass_pass"], found[0]["agreement"]) == (6, pytest.approx(11 / 13))
    assert (found[0]["kappa"], found[0]["ci_low"], found[0]["ci_high"]) == cohen_kappa(6, 1, 1, 5)
    assert math.isnan(found[1]["kappa"])


def test_agreement_of_traces_without_an_experiment_is_kept() -> None:
    row = agreement_row(0, "1", "judge", "human", "judge", (4, 1, 0, 3)) | {"experiment_id": None}
    assert findings.agreement_rows(frame(SCORER_AGREEMENT, [row]))["compared"].tolist() == [8]
