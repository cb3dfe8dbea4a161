from __future__ import annotations

import warnings
from datetime import date
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from monitoring_pipeline.reports import charts
from monitoring_pipeline.reports.period import Period

DAY, WEEK = Period.day(date(2026, 1, 14)).slots, Period.week_of(date(2026, 1, 14)).slots

HOURS = pd.DataFrame(
    {
        "trace_count": [10.0, 20.0],
        "error_count": [1.0, 5.0],
        "error_rate": [0.1, 0.25],
        "p50_duration_ms": [100.0, np.inf],
        "p95_duration_ms": [200.0, np.nan],
        "p99_duration_ms": [300.0, 2000.0],
        "cost_usd": [0.25, np.nan],
        "mean_score": [0.5, 0.75],
        "ci_low": [0.25, np.nan],
        "ci_high": [0.75, np.nan],
    },
    index=pd.DatetimeIndex([DAY[5], DAY[7]]),
)
CHARTS = [charts.volume_chart, charts.error_rate_chart, charts.latency_chart, charts.cost_chart, charts.quality_chart]


def lines(figure: Figure) -> list[dict[int, float]]:
    """The drawn points of each line, by hour; gaps left out."""
    drawn = [np.asarray(line.get_xydata()) for line in figure.axes[0].lines]
    return [{int(x): float(y) for x, y in points if np.isfinite(y)} for points in drawn]


def bars(figure: Figure, group: int = 0) -> dict[int, tuple[float, float]]:
    """Bottom and top of each bar that has a height, by hour."""
    rectangles = [cast(Rectangle, bar) for bar in figure.axes[0].containers[group]]
    return {
        round(bar.get_x() + bar.get_width() / 2): (bar.get_y(), bar.get_y() + bar.get_height())
        for bar in rectangles
        if np.isfinite(bar.get_height()) and bar.get_height() > 0
    }


@pytest.mark.parametrize("chart", CHARTS)
def test_the_axis_has_all_hours_and_drawing_raises_no_warning(chart) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = chart(HOURS, DAY, [DAY[7]])
        charts.png(figure)
    assert figure.axes[0].get_xlim() == (-0.5, 23.5)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][:3] == ["00", "03", "06"]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_week_has_a_point_for_each_day(chart) -> None:
    rows = HOURS.set_axis(pd.DatetimeIndex([WEEK[0], WEEK[2]]))
    figure = chart(rows, WEEK, [WEEK[2]])
    assert figure.axes[0].get_xlim() == (-0.5, 6.5)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["Mon 12", "Tue 13", "Wed 14", "Thu 15", "Fri 16", "Sat 17", "Sun 18"]
    shades = [patch.get_x() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert 1.5 in shades


@pytest.mark.parametrize("chart", CHARTS)
def test_same_rows_yield_the_same_bytes(chart) -> None:
    assert charts.png(chart(HOURS, DAY, [DAY[7]])) == charts.png(chart(HOURS, DAY, [DAY[7]]))
    assert charts.png(chart(HOURS, DAY, [DAY[7]])) != charts.png(chart(HOURS, DAY, [DAY[5]]))


def test_volume_stacks_errors_on_the_rest() -> None:
    figure = charts.volume_chart(HOURS, DAY, [])
    assert bars(figure, 0) == {5: (0, 9), 7: (0, 15)}
    assert bars(figure, 1) == {5: (9, 10), 7: (15, 20)}


def test_hours_without_a_row_or_a_finite_number_are_gaps() -> None:
    assert lines(charts.error_rate_chart(HOURS, DAY, [])) == [{5: 0.1, 7: 0.25}]
    assert lines(charts.latency_chart(HOURS, DAY, [])) == [{5: 300, 7: 2000}, {5: 200}, {5: 100}]


def test_known_cost_is_a_bar() -> None:
    assert bars(charts.cost_chart(HOURS, DAY, [])) == {5: (0, 0.25)}


def test_quality_has_a_mean_and_a_band_even_next_to_gaps() -> None:
    figure = charts.quality_chart(HOURS, DAY, [])
    assert lines(figure) == [{5: 0.5, 7: 0.75}]
    assert bars(figure) == {5: (0.25, 0.75)}


def test_pass_rates_are_drawn_from_0_to_1_and_other_scores_are_not_cut_off() -> None:
    assert charts.quality_chart(HOURS, DAY, []).axes[0].get_ylim() == (-0.02, 1.02)
    low, high = charts.quality_chart(HOURS * 5, DAY, []).axes[0].get_ylim()
    assert low <= 1.25
    assert high >= 3.75


def test_an_hour_without_errors_keeps_a_scale() -> None:
    low, high = charts.error_rate_chart(HOURS.assign(error_rate=0.0), DAY, []).axes[0].get_ylim()
    assert (low, high) == (0, 0.05)
