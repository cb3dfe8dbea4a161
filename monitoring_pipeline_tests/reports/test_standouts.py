from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.reports.standouts import Incident, Standout, incidents, standouts
from monitoring_pipeline.tables import HOURLY_PERFORMANCE
from monitoring_pipeline_tests.reports.frames import frame, moment, performance_row, quality_row, scores_by_hour

NO_SCORES = scores_by_hour([])
STEADY = {"traces": 100, "errors": 3, "p95": 2000.0}


def at(hour: int) -> pd.Timestamp:
    return pd.Timestamp(moment(hour))


def steady_day(**odd_hour: float) -> pd.DataFrame:
    """100 traces an hour with 3 errors and a p95 of 2 s, except `odd_hour` at 14:00."""
    rows = []
    for hour in range(24):
        values = STEADY | odd_hour if hour == 14 else STEADY
        rows.append(performance_row(hour, "1", int(values["traces"]), int(values["errors"]), values["p95"]))
    return frame(HOURLY_PERFORMANCE, rows)


def test_error_rate_stands_out() -> None:
    assert standouts(steady_day(errors=41), NO_SCORES) == [Standout("1", at(14), "error rate", 0.41, 0.03)]


# by Wilson's formula the 95 % interval begins at 0.0776 for 13 errors in 100 and at 0.0853 for 14
@pytest.mark.parametrize(("errors", "stands_out"), [(13, False), (14, True)])
def test_error_rate_needs_its_whole_interval_above_the_margin(errors: int, stands_out: bool) -> None:
    assert bool(standouts(steady_day(errors=errors), NO_SCORES)) is stands_out


def test_the_usual_error_rate_is_that_of_all_other_hours_together() -> None:
    # 20 traces an hour, with an error in every other hour: the median alone would be 0, and 3 of 20 stand out
    rows = [performance_row(hour, "1", 20, 3 if hour == 14 else 2 * (hour % 2), 2000.0) for hour in range(24)]
    assert standouts(frame(HOURLY_PERFORMANCE, rows), NO_SCORES) == []


@pytest.mark.parametrize(("p95", "stands_out"), [(3999.0, False), (4000.0, True)])
def test_latency_stands_out_from_twice_the_median(p95: float, stands_out: bool) -> None:
    expected = [Standout("1", at(14), "p95", 4000.0, 2000.0)] if stands_out else []
    assert standouts(steady_day(p95=p95), NO_SCORES) == expected


def test_the_median_excludes_the_hour_itself() -> None:
    rows = [performance_row(hour, "1", 50, 1, p95) for hour, p95 in enumerate([1000.0, 1200.0, 1100.0, 2250.0])]
    performance = frame(HOURLY_PERFORMANCE, rows)
    assert standouts(performance, NO_SCORES) == [Standout("1", at(3), "p95", 2250.0, 1100.0)]


def test_few_traces_never_stand_out() -> None:
    assert standouts(steady_day(traces=19, errors=19, p95=90_000), NO_SCORES) == []
    assert len(standouts(steady_day(traces=20, errors=20, p95=90_000), NO_SCORES)) == 2


def test_three_other_hours_are_needed() -> None:
    day = steady_day(errors=90)
    three = day[day["hour"] >= moment(12)].head(3)
    four = day[day["hour"] >= moment(12)].head(4)
    assert standouts(pd.DataFrame(three), NO_SCORES) == []
    assert len(standouts(pd.DataFrame(four), NO_SCORES)) == 1


@pytest.mark.parametrize(
    ("usual", "scored", "mean", "stands_out"),
    [(0.9, 50, 0.5, True), (0.9, 19, 0.1, False), (0.9, 50, 0.8, False), (0.1, 50, 0.6, True)],
)
def test_quality_stands_out_if_its_interval_does_not_overlap(
    usual: float, scored: int, mean: float, stands_out: bool
) -> None:
    rows = [quality_row(hour, "1", "polite", 50, usual) for hour in range(24) if hour != 14]
    scores = scores_by_hour([*rows, quality_row(14, "1", "polite", scored, mean)])
    found = standouts(steady_day(), scores)
    assert [(s.hour, s.measure, s.value, s.scorer) for s in found] == [(at(14), "score", mean, "polite")] * stands_out
    assert all(standout.baseline == pytest.approx(usual) for standout in found)


@pytest.mark.parametrize(("usual", "mean", "stands_out"), [(0.9, 0.5, True), (0.9, 0.7, False), (0.1, 0.6, False)])
def test_only_a_fall_of_a_pass_rate_stands_out(usual: float, mean: float, stands_out: bool) -> None:
    rows = [quality_row(hour, "1", "polite", 50, mean if hour == 14 else usual) for hour in range(24)]
    scores = scores_by_hour(rows).assign(judged=50)
    found = standouts(steady_day(), scores.assign(pass_rate=scores["mean_score"]))
    assert [(s.hour, s.measure, s.value) for s in found] == [(at(14), "pass rate", mean)] * stands_out


def test_hours_of_scores_that_vary_by_chance_do_not_stand_out() -> None:
    """Two days with a pass rate of 77 % and 25 scores an hour: hourly means range from 0.5 to 1."""
    random = np.random.default_rng(2)
    for _ in range(20):
        means = random.binomial(25, 0.77, 48) / 25
        scores = scores_by_hour([quality_row(hour, "1", "polite", 25, float(mean)) for hour, mean in enumerate(means)])
        assert standouts(steady_day(), scores.assign(judged=25, pass_rate=scores["mean_score"])) == []


def test_hours_with_little_traffic_count_for_the_usual_value() -> None:
    rows = [performance_row(hour, "1", 20 if hour == 14 else 10, 5 if hour == 14 else 2, 2000.0) for hour in range(24)]
    assert standouts(frame(HOURLY_PERFORMANCE, rows), NO_SCORES) == []


def test_incidents_join_consecutive_hours_and_keep_the_worst() -> None:
    early, late = Standout("1", at(13), "p95", 5000, 2000), Standout("1", at(14), "p95", 9000, 2000)
    score = Standout("1", at(14), "score", 0.5, 0.9, "polite")
    apart, other = Standout("1", at(16), "p95", 5000, 2000), Standout("2", at(15), "p95", 5000, 2000)
    assert incidents([score, apart, late, other, early]) == [
        Incident("1", at(13), at(15), [late, score]),
        Incident("1", at(16), at(17), [apart]),
        Incident("2", at(15), at(16), [other]),
    ]


def test_an_incident_continues_over_midnight() -> None:
    found = [Standout("1", at(23), "p95", 5000, 2000), Standout("1", at(24), "p95", 6000, 2000)]
    [incident] = incidents(found)
    assert (incident.start, incident.end) == (at(23), at(25))


@given(st.lists(st.tuples(st.sampled_from("12"), st.integers(0, 40)), unique=True))
def test_incidents_contain_every_standout_once_and_never_touch(hours: list[tuple[str, int]]) -> None:
    found = incidents([Standout(experiment, at(hour), "p95", 5000, 2000) for experiment, hour in hours])
    covered = [
        (incident.experiment_id, hour)
        for incident in found
        for hour in pd.date_range(incident.start, incident.end, freq="h", inclusive="left")
    ]
    assert sorted(covered) == sorted((experiment, at(hour)) for experiment, hour in hours)
    ends = {(incident.experiment_id, incident.end) for incident in found}
    assert not ends & {(incident.experiment_id, incident.start) for incident in found}
