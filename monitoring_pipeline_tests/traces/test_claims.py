"""What traces claim: sound values pass unchanged, all others become null and are noted."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.traces.claims import EARLIEST, HIGHEST_COST_USD, LATEST, LONGEST_MS, MOST_TOKENS, Claims
from monitoring_pipeline.windows import EPOCH

NOON = datetime(2026, 1, 10, 12, 0, 0, 123456, tzinfo=UTC)
READERS: list[tuple[Callable[[Claims, Any], Any], float]] = [
    (lambda claims, value: claims.duration_ms("duration_ms", value), LONGEST_MS),
    (lambda claims, value: claims.cost_usd("cost_usd", value), HIGHEST_COST_USD),
    (lambda claims, value: claims.count("input_tokens", value), MOST_TOKENS),
]


@pytest.mark.parametrize(("read", "most"), READERS)
@given(value=st.floats() | st.integers() | st.booleans() | st.text())
def test_a_number_is_kept_or_noted(read: Callable[[Claims, Any], Any], most: float, value: Any) -> None:
    claims = Claims()
    found = read(claims, value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and 0 <= value <= most:
        assert found == (int(value) if isinstance(found, int) else value)
        assert claims.implausible == []
    else:
        assert found is None
        assert len(claims.implausible) == 1


@given(st.datetimes(EARLIEST.replace(tzinfo=None), LATEST.replace(tzinfo=None) - timedelta(microseconds=1)))
def test_a_time_of_this_century_is_read_in_any_unit(moment: datetime) -> None:
    microseconds = (moment.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    claims = Claims()
    of_unit = {unit: claims.time("time", microseconds * 1000 // unit) for unit in (1, 1000, 10**6)}
    assert of_unit[1] == of_unit[1000] == EPOCH + timedelta(microseconds=microseconds)
    assert of_unit[10**6] == EPOCH + timedelta(milliseconds=microseconds // 1000)
    assert claims.implausible == []


@pytest.mark.parametrize("value", [0, None])
def test_a_time_that_is_not_known_is_null_and_not_noted(value: int | None) -> None:
    claims = Claims()
    assert claims.time("end", value) is None
    assert claims.implausible == []


@pytest.mark.parametrize("value", [-1, 1, 86_400_000, 5 * 10**18, 10**30])
def test_a_time_of_another_century_is_null_and_noted(value: int) -> None:
    claims = Claims()
    assert claims.time("end", value) is None
    assert claims.implausible == [f"end {value}"]


def test_text_for_a_time_makes_the_trace_malformed() -> None:
    with pytest.raises(TypeError, match="end 'noon' is not a whole number"):
        Claims().time("end", "noon")


def test_notes_are_short_and_few() -> None:
    claims = Claims()
    for _ in range(1000):
        claims.duration_ms("duration_ms", "x" * 10_000)
    assert len(claims.implausible) == 20
    assert max(map(len, claims.implausible)) < 60
