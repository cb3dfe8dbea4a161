"""Windows of time: half-open, split by hours and days; invalid times are refused with the value and the fix."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.windows import EPOCH, HOUR, Window, floor_hour, from_milliseconds, parse_utc

FIVE = datetime(2026, 1, 1, 5, tzinfo=UTC)
SIX = FIVE + HOUR
PLUS_TWO = timezone(timedelta(hours=2))

EARLIEST, LATEST = datetime.fromisoformat("1990-01-01"), datetime.fromisoformat("2100-01-01")

moments = st.datetimes(EARLIEST, LATEST, timezones=st.just(UTC))
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
windows = st.builds(
    lambda start, length: Window(start, start + length),
    st.datetimes(EARLIEST, LATEST, timezones=offsets),
    st.timedeltas(timedelta(microseconds=1), timedelta(days=5)),
)


def test_the_start_is_inside() -> None:
    assert FIVE in Window(FIVE, SIX)


def test_the_end_is_outside() -> None:
    assert SIX not in Window(FIVE, SIX)


@pytest.mark.parametrize("moment", [FIVE - timedelta(microseconds=1), SIX + timedelta(microseconds=1)])
def test_moments_before_and_after_are_outside(moment: datetime) -> None:
    assert moment not in Window(FIVE, SIX)


@pytest.mark.parametrize(
    ("start", "end"),
    [(FIVE, FIVE), (SIX, FIVE), (FIVE.replace(tzinfo=None), SIX), (FIVE, SIX.replace(tzinfo=None))],
    ids=["empty", "backwards", "naive start", "naive end"],
)
def test_an_impossible_window_is_refused_with_its_bounds(start: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match=re.escape(str(start))):
        Window(start, end)


def test_a_window_in_another_zone_is_converted_to_utc() -> None:
    window = Window(datetime(2026, 1, 2, 1, tzinfo=PLUS_TWO), datetime(2026, 1, 2, 3, tzinfo=PLUS_TWO))

    assert (window.days(), str(window)) == (
        [date(2026, 1, 1), date(2026, 1, 2)],
        "2026-01-01 23:00 to 2026-01-02 01:00 UTC",
    )


def test_hours_are_the_hours_that_the_window_touches() -> None:
    window = Window(FIVE + timedelta(minutes=59), SIX + timedelta(microseconds=1))

    assert list(window.hours()) == [FIVE, SIX]


def test_a_day_that_starts_at_the_end_is_not_touched() -> None:
    midnight = datetime(2026, 1, 2, tzinfo=UTC)

    assert Window(FIVE, midnight).days() == [date(2026, 1, 1)]


@given(windows)
def test_hours_partition_the_window(window: Window) -> None:
    parts = [Window(max(hour, window.start), min(hour + HOUR, window.end)) for hour in window.hours()]

    assert parts[0].start == window.start
    assert parts[-1].end == window.end
    assert all(before.end == after.start for before, after in pairwise(parts))


@given(windows)
def test_days_are_the_dates_of_the_hours(window: Window) -> None:
    assert window.days() == sorted({hour.date() for hour in window.hours()})


@given(st.lists(moments, min_size=1))
def test_covering_contains_every_moment(given_moments: list[datetime]) -> None:
    window = Window.covering(given_moments)

    assert all(moment in window for moment in given_moments)


@given(st.lists(moments, min_size=1))
def test_covering_is_the_smallest_window_of_whole_hours(given_moments: list[datetime]) -> None:
    window = Window.covering(given_moments)

    assert all(bound == floor_hour(bound) for bound in (window.start, window.end))
    assert min(given_moments) < window.start + HOUR
    assert max(given_moments) >= window.end - HOUR


@given(moments, offsets)
def test_the_hour_of_a_moment_does_not_depend_on_its_zone(moment: datetime, zone: timezone) -> None:
    assert floor_hour(moment.astimezone(zone)) == datetime(
        moment.year, moment.month, moment.day, moment.hour, tzinfo=UTC
    )


@given(st.integers(-(10**12), 10**13))
def test_milliseconds_are_kept_exactly(milliseconds: int) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    assert (from_milliseconds(milliseconds) - epoch) / timedelta(milliseconds=1) == milliseconds


@pytest.mark.parametrize("text", ["2026-01-01T05:00Z", "2026-01-01 07:00+02:00", "20260101T050000+00:00"])
def test_times_with_an_offset_are_read_as_utc(text: str) -> None:
    moment = parse_utc(text)

    assert (moment, moment.tzinfo) == (FIVE, UTC)


@given(moments, offsets)
def test_a_time_reads_back_from_any_zone(moment: datetime, zone: timezone) -> None:
    assert parse_utc(moment.astimezone(zone).isoformat()) == moment


@pytest.mark.parametrize("text", ["2026-01-01T05:00", "2026-01-01", "20260101", "2026-01-01T05:00:00.5"])
def test_a_time_without_a_zone_is_refused_with_a_fix_that_works(text: str) -> None:
    with pytest.raises(ValueError, match="has no time zone") as refusal:
        parse_utc(text)

    assert repr(text) in str(refusal.value)
    fix = str(refusal.value).rpartition("such as ")[2]
    assert parse_utc(fix) == datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01T00:00Z", "1767225600", "0001-01-01T00:00+05:00", "05:00Z"])
def test_text_that_is_not_a_time_is_refused_with_a_fix_that_works(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time") as refusal:
        parse_utc(text)

    assert repr(text) in str(refusal.value)
    assert parse_utc(str(refusal.value).rpartition("write it as ")[2]) == FIVE


@given(windows)
def test_a_window_cut_by_hour_or_by_day_is_the_same_window(window: Window) -> None:
    for parts, length in ((list(window.by_hour()), HOUR), (list(window.by_day()), 24 * HOUR)):
        assert (parts[0].start, parts[-1].end) == (window.start, window.end)
        assert all(one.end == following.start for one, following in pairwise(parts))
        last = timedelta(microseconds=1)
        assert all((part.start - EPOCH) // length == (part.end - last - EPOCH) // length for part in parts)
        assert all((one.end - EPOCH) % length == timedelta(0) for one in parts[:-1])
