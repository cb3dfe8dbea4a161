"""When the traces of an hour in quarantine are read again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.archive.account import AccountedHour, due_hours
from monitoring_pipeline.sources.base import HourCounts

FIRST = datetime(2026, 1, 1, 5, tzinfo=UTC)
COUNTS = HourCounts(3, 0, 0, "")


def tries(ticks: list[datetime]) -> list[datetime]:
    """The ticks at which an hour that stays unreadable since FIRST is due."""
    hour, tried = AccountedHour(COUNTS, FIRST, FIRST, FIRST), []
    for now in ticks:
        if due_hours({FIRST: COUNTS}, {FIRST: hour}, now):
            tried.append(now)
            hour = AccountedHour(COUNTS, now, FIRST, now)
    return tried


def test_a_trace_that_stays_unreadable_is_tried_on_three_days_after_ever_longer_pauses() -> None:
    minutes = [
        (now - FIRST) // timedelta(minutes=1) for now in tries([FIRST + n * timedelta(minutes=1) for n in range(9000)])
    ]
    assert minutes == [10 * 2**number for number in range(10)]
    assert minutes[-1] > 3 * 24 * 60


@given(st.lists(st.integers(1, 10_000), max_size=300))
def test_no_ticks_however_irregular_lead_to_many_tries(pauses: list[int]) -> None:
    now, ticks = FIRST, []
    for pause in pauses:
        now += timedelta(minutes=pause)
        ticks.append(now)
    tried = [FIRST, *tries(ticks)]
    assert len(tried) <= 11
    assert all(later - earlier >= timedelta(minutes=10) for earlier, later in pairwise(tried))


def test_an_hour_without_quarantine_is_not_due() -> None:
    assert due_hours({FIRST: COUNTS}, {FIRST: AccountedHour(COUNTS, FIRST)}, FIRST + timedelta(days=1)) == {}
