"""The period of a report: a day, or a week that starts on Monday. All in UTC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from monitoring_pipeline.windows import HOUR, Window

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Period:
    """The day `first_day`, or the week that begins on `first_day`, a Monday."""

    kind: Literal["day", "week"]
    first_day: date

    @classmethod
    def day(cls, day: date) -> Period:
        return cls("day", day)

    @classmethod
    def week_of(cls, day: date) -> Period:
        """The week, starting on Monday, that contains `day`."""
        return cls("week", day - timedelta(days=day.weekday()))

    @property
    def name(self) -> str:
        """The name, such as 2026-01-14 or 2026-W03 (ISO 8601); also the name of the report's folder."""
        year, week, _ = self.first_day.isocalendar()
        return self.first_day.isoformat() if self.kind == "day" else f"{year:04d}-W{week:02d}"

    @property
    def partition_key(self) -> str:
        """The key of its partition in Dagster: its first day."""
        return self.first_day.isoformat()

    @property
    def title(self) -> str:
        """The dates, formatted for reading."""
        last = self.first_day + timedelta(days=6)
        return f"{self.first_day:%A} {self.first_day}" if self.kind == "day" else f"{self.first_day} to {last}"

    @property
    def window(self) -> Window:
        start = datetime.combine(self.first_day, time(), UTC)
        return Window(start, start + self._length)

    @property
    def slots(self) -> list[datetime]:
        """The starts of the slots in charts: the hours of a day, or the days of a week."""
        start, step = self.window.start, HOUR if self.kind == "day" else DAY
        return [start + n * step for n in range(self._length // step)]

    @property
    def slot_kind(self) -> Literal["hour", "day"]:
        return "hour" if self.kind == "day" else "day"

    def earlier(self) -> Iterator[tuple[str, Period]]:
        """Labels and periods to compare with, the nearest first."""
        week_before = self.first_day - timedelta(days=7)
        if self.kind == "week":
            yield "the week before", Period("week", week_before)
        else:
            yield "the day before", Period("day", self.first_day - DAY)
            yield f"{self.first_day:%A} a week before", Period("day", week_before)

    @property
    def _length(self) -> timedelta:
        return DAY if self.kind == "day" else timedelta(days=7)
