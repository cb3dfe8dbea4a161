from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.windows import Window

DATES = st.dates(date(2000, 1, 3), date(2200, 1, 1))


def test_a_day_is_compared_with_the_day_before_and_the_same_weekday() -> None:
    day = Period.day(date(2026, 1, 14))
    assert day.window == Window(datetime(2026, 1, 14, tzinfo=UTC), datetime(2026, 1, 15, tzinfo=UTC))
    assert [(label, earlier.name) for label, earlier in day.earlier()] == [
        ("the day before", "2026-01-13"),
        ("Wednesday a week before", "2026-01-07"),
    ]
    assert (day.name, day.partition_key, day.title) == ("2026-01-14", "2026-01-14", "Wednesday 2026-01-14")
    assert day.slots[::23] == [datetime(2026, 1, 14, tzinfo=UTC), datetime(2026, 1, 14, 23, tzinfo=UTC)]


def test_a_week_over_new_year_is_named_by_the_year_of_its_thursday() -> None:
    week = Period.week_of(date(2026, 1, 1))
    assert (week.name, week.partition_key, week.title) == ("2026-W01", "2025-12-29", "2025-12-29 to 2026-01-04")
    assert [(label, earlier.name) for label, earlier in week.earlier()] == [("the week before", "2025-W52")]
    assert week.window == Window(datetime(2025, 12, 29, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC))


@given(DATES)
def test_a_week_contains_its_day_and_has_its_own_name(day: date) -> None:
    week = Period.week_of(day)
    assert datetime(day.year, day.month, day.day, 12, tzinfo=UTC) in week.window
    assert week.first_day.weekday() == 0
    assert week.name == f"{day:%G-W%V}"
    assert [slot.date() for slot in week.slots] == [week.first_day + timedelta(days=n) for n in range(7)]
