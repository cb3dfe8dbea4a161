"""Time windows: half-open, [start, end), in UTC. A trace belongs to a window by its start time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

HOUR = timedelta(hours=1)
SESSION_SPAN = timedelta(days=7)  # the longest session, see scoring/sessions.py
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)


def floor_hour(moment: datetime) -> datetime:
    """Return the start of the UTC hour that contains `moment` (timezone-aware)."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def from_milliseconds(milliseconds: int) -> datetime:
    """Return the UTC time of milliseconds since 1970, without floating-point rounding."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def to_milliseconds(moment: datetime) -> int:
    """Return whole milliseconds from 1970 to `moment` (timezone-aware), rounded down."""
    return (moment - EPOCH) // _MILLISECOND


def nanoseconds(time: int) -> int:
    """A time since 1970 in ms, us or ns, as ns. Its size tells the unit: the ranges do not meet from 1973 to 5138."""
    if time < 10**14:
        return time * 10**6
    return time * 1000 if time < 10**17 else time


def to_microseconds(moment: datetime) -> int:
    """Return microseconds from 1970 to `moment` (timezone-aware)."""
    return (moment - EPOCH) // _MICROSECOND


def parse_utc(text: str) -> datetime:
    """Parse `text` (ISO 8601 with an offset, such as 2026-01-01T05:00Z) as a UTC time.

    Raises:
        ValueError: not ISO 8601, or without an offset; the message names the value and the fix.
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter if the UTC time is outside of the years 1 to 9999
        raise ValueError(f"{text!r} is not a time: write it as 2026-01-01T05:00Z") from None
    raise ValueError(f"{text!r} has no time zone: add an offset, such as {moment.isoformat()}Z")


@dataclass(frozen=True)
class Window:
    """All times t with start <= t < end; both are timezone-aware and converted to UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError(f"a window needs times with a time zone, not {self.start} and {self.end}")
        if self.start >= self.end:
            raise ValueError(f"a window must end after it starts, not {self.start} to {self.end}")
        object.__setattr__(self, "start", self.start.astimezone(UTC))
        object.__setattr__(self, "end", self.end.astimezone(UTC))

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M} UTC"

    @classmethod
    def covering(cls, moments: list[datetime]) -> Window:
        """Return the smallest window of whole hours that contains all `moments` (at least one)."""
        return cls(floor_hour(min(moments)), floor_hour(max(moments)) + HOUR)

    def hours(self) -> Iterator[datetime]:
        """Yield the starts of the hours that overlap the window, in order."""
        hour = floor_hour(self.start)
        while hour < self.end:
            yield hour
            hour += HOUR

    def by_hour(self) -> Iterator[Window]:
        """Yield the window split at full hours, in order."""
        for hour in self.hours():
            yield Window(max(self.start, hour), min(self.end, hour + HOUR))

    def inner_hours(self) -> Window | None:
        """Return the whole hours inside the window; None if there are none."""
        start = floor_hour(self.start) if floor_hour(self.start) == self.start else floor_hour(self.start) + HOUR
        end = floor_hour(self.end)
        return Window(start, end) if start < end else None

    def by_day(self) -> Iterator[Window]:
        """Yield the window split at UTC midnights, in order."""
        for day in self.days():
            midnight = datetime.combine(day, time(), UTC)
            yield Window(max(self.start, midnight), min(self.end, midnight + timedelta(days=1)))

    def days(self) -> list[date]:
        """Return the UTC dates that overlap the window, in order."""
        last = (self.end - timedelta(microseconds=1)).date()
        first = self.start.date()
        return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def parts(window: Window, hours: int) -> list[Window]:
    """Return `window` split into windows of `hours` hours, in order."""
    starts = []
    start = window.start
    while start < window.end:
        starts.append(start)
        start += timedelta(hours=hours)
    return [Window(start, min(start + timedelta(hours=hours), window.end)) for start in starts]
