from __future__ import annotations

import pandas as pd
import pytest

from monitoring_pipeline.reports.stages import slow_stage, slowest_stages
from monitoring_pipeline.reports.standouts import Incident
from monitoring_pipeline.tables import SPAN_PROFILE
from monitoring_pipeline_tests.reports.frames import (
    DAY_BEFORE,
    INCIDENT_HOUR,
    PERIOD,
    STAGE_COLUMNS,
    columns,
    frame,
    incident_day,
    moment,
    stage_hour,
    stage_rows,
)

BAD_HOUR = Incident("1", pd.Timestamp(moment(INCIDENT_HOUR)), pd.Timestamp(moment(INCIDENT_HOUR + 1)), [])


def test_stages_are_in_order_of_self_time_next_to_the_day_before() -> None:
    data = incident_day()
    rows = slowest_stages(data.stages, data.stage_hours, PERIOD.name, DAY_BEFORE)
    assert rows["span_name"].tolist() == ["retrieve", "answer"]
    first = rows.iloc[0]
    assert (first["mean_self_ms"], first["mean_self_ms_before"], first["self_share"]) == (
        500.0,
        150.0,
        pytest.approx(5 / 6),
    )
    assert (first["highest_p95_ms"], first["worst_hour"]) == (8000.0, moment(INCIDENT_HOUR))


def test_a_new_stage_has_no_earlier_figures() -> None:
    rows = columns([row for row in stage_rows() if row["period"] == PERIOD.name], STAGE_COLUMNS)
    found = slowest_stages(rows, frame(SPAN_PROFILE, []), PERIOD.name, DAY_BEFORE)
    assert found["mean_self_ms_before"].isna().all()
    assert found["worst_hour"].isna().all()


def test_the_slow_stage_is_the_one_that_gained_most_time() -> None:
    hours = [stage_hour(hour, 8000.0 if hour == INCIDENT_HOUR else 150.0) for hour in range(24)]
    hours += [stage_hour(hour, 900.0 if hour == INCIDENT_HOUR else 300.0, "answer") for hour in range(24)]
    found = slow_stage(frame(SPAN_PROFILE, hours), BAD_HOUR)
    assert found is not None
    assert (found.span_name, found.self_ms, found.usual_self_ms) == ("retrieve", 8000.0, 150.0)


@pytest.mark.parametrize("bad", [150.0, 290.0])
def test_no_stage_is_slow_below_twice_its_usual_time(bad: float) -> None:
    hours = [stage_hour(hour, bad if hour == INCIDENT_HOUR else 150.0) for hour in range(24)]
    assert slow_stage(frame(SPAN_PROFILE, hours), BAD_HOUR) is None


def test_a_stage_that_ran_only_in_the_incident_has_no_comparison() -> None:
    assert slow_stage(frame(SPAN_PROFILE, [stage_hour(INCIDENT_HOUR, 8000.0)]), BAD_HOUR) is None
    assert slow_stage(frame(SPAN_PROFILE, []), BAD_HOUR) is None
