"""What a trace says about itself, as numbers that may enter sums: what cannot be right becomes null and is noted.

`trace_json` keeps every value as it came.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from monitoring_pipeline.text import plain
from monitoring_pipeline.windows import EPOCH, nanoseconds, to_microseconds

LONGEST_MS = timedelta(days=366) / timedelta(milliseconds=1)
MOST_TOKENS = 10**12
HIGHEST_COST_USD = 1e9
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
EARLIEST_US, LATEST_US = to_microseconds(EARLIEST), to_microseconds(LATEST)
NOTED, NOTED_CHARACTERS = 20, 40


@dataclass
class Claims:
    """Reads the values of one trace, and notes those that cannot be right in `implausible`: name and value."""

    implausible: list[str] = field(default_factory=list)

    def duration_ms(self, name: str, value: Any) -> float | None:
        """A duration from 0 to 366 days."""
        return self._number(name, value, LONGEST_MS)

    def cost_usd(self, name: str, value: Any) -> float | None:
        """A cost from 0 to a thousand million dollars."""
        return self._number(name, value, HIGHEST_COST_USD)

    def count(self, name: str, value: Any) -> int | None:
        """A whole number from 0 to a million million; fractions are cut off."""
        if type(value) is int and 0 <= value <= MOST_TOKENS:  # the usual case
            return value
        number = self._number(name, value, MOST_TOKENS)
        return None if number is None else int(number)

    def time(self, name: str, value: Any) -> datetime | None:
        """A time of this century in ns, us or ms since 1970, with microseconds; 0 means unknown.

        Raises:
            TypeError: the value is not a number, so the trace is malformed.
        """
        if not value:
            return None
        if not isinstance(value, int):
            raise TypeError(f"{name} {value!r} is not a whole number")
        if value > 0 and EARLIEST_US <= (microseconds := nanoseconds(value) // 1000) < LATEST_US:
            return EPOCH + timedelta(microseconds=microseconds)
        self.note(name, value)
        return None

    def note(self, name: str, value: Any) -> None:
        """Note that the value cannot be right."""
        if len(self.implausible) < NOTED:
            self.implausible.append(f"{name} {plain(str(value), NOTED_CHARACTERS)}")

    def _number(self, name: str, value: Any, most: float) -> float | None:
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most:  # NaN is not
            return float(value)
        self.note(name, value)
        return None
