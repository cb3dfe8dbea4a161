"""The sensor `new_traces`: compares what the source has with the account of the archive, and requests what differs.

It looks at levels, not at edges: a missed tick, a crash or a week's stop leaves hours that differ, and the next look
finds them. All it remembers by itself is which older day it looks at next.
"""

import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from monitoring_pipeline.archive.account import AccountedHour, accounted, due_hours
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.keys import ARCHIVE, RANGE_END, RANGE_START, partition_key
from monitoring_pipeline.orchestration.requested_runs import (
    ASKED_BY,
    ATTEMPT,
    COUNTS,
    SENSOR,
    AskedRun,
    asked_today,
    given_up,
    hours_under_way,
    text_of,
)
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource, impatience
from monitoring_pipeline.settings import ArchiveSettings, SensorSettings
from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.windows import HOUR, Window, floor_hour

__all__ = ["given_up", "new_traces_sensor"]

BUDGET_S = 25.0  # after which no further day is looked at; Dagster ends a tick after 60 seconds
HOURS_PER_RUN = 24
PRIORITY = "dagster/priority"
RUNS_PER_TICK = 10  # the rest is found by the next tick


@dataclass
class Found:
    """What a look at the source found: the hours that differ, what the account has of them, and how far it came."""

    due: dict[datetime, HourCounts] = field(default_factory=dict)
    account: dict[datetime, AccountedHour] = field(default_factory=dict)
    cursor: str | None = None
    is_complete: bool = True


@dataclass(frozen=True)
class Request:
    """Consecutive hours that one run is to archive, and the how-manieth attempt at them it is."""

    hours: list[datetime]
    attempt: int


def new_traces_sensor(source: ArchiveSettings, settings: SensorSettings, is_running: bool) -> dg.SensorDefinition:
    """The sensor; it starts with Dagster where it `is_running`, else it is switched on in the UI."""
    status = dg.DefaultSensorStatus.RUNNING if is_running else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name=SENSOR,
        job_name=ARCHIVE,
        minimum_interval_seconds=settings.interval_seconds,
        default_status=status,
        description="Compares the source with the archive, hour by hour, and requests the hours that differ.",
    )
    def new_traces(
        context: dg.SensorEvaluationContext, tracking: TrackingResource, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        now = datetime.now(UTC)
        try:
            with impatience():
                found = look(source, settings, tracking, lake, now, context.cursor)
        except MonitoringError as error:
            return dg.SkipReason(f"source and archive cannot be compared: {error}")
        if not found.is_complete:
            context.log.warning(
                f"looking at the source took more than {BUDGET_S:.0f} seconds; lower [sensor] look_back_hours"
            )
        under_way = hours_under_way(context.instance, now) & found.due.keys()
        asked = asked_today(context.instance, now)
        fresh = _without_fresh_current_hour(found, settings, now)
        open_hours = {hour: counts for hour, counts in fresh.items() if hour not in under_way}
        failures = {hour: _failures(hour, counts, found, asked) for hour, counts in open_hours.items()}
        for hour in (hour for hour, number in failures.items() if number >= settings.max_attempts):
            context.log.error(
                f"{partition_key(hour)} is not asked for again today: {failures[hour]} runs for what the source has of "
                "it now did not bring it into the archive; see these runs"
            )
        wanted = {hour: number for hour, number in failures.items() if number < settings.max_attempts}
        requests = list(_requests(wanted))
        if not requests:
            left = {
                "given up for today": open_hours.keys() - wanted.keys(),
                "being archived": under_way,
                "archived a short while ago": found.due.keys() - fresh.keys(),
            }
            return dg.SensorResult(skip_reason=_why_nothing(left), cursor=found.cursor)
        return dg.SensorResult(
            run_requests=[
                _run_request(request, found.due, asked, settings, now) for request in requests[:RUNS_PER_TICK]
            ],
            cursor=found.cursor,
        )

    return new_traces


def look(
    source: ArchiveSettings,
    settings: SensorSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    now: datetime,
    cursor: str | None,
) -> Found:
    """Compare the look-back, day by day from the latest, then one older day: that of the `cursor`, else the latest one.

    Raises:
        TrackingError, LakeError: source or lake cannot be read.
    """
    deadline = time.monotonic() + BUDGET_S
    found = Found(cursor=cursor)
    end = floor_hour(now) + HOUR
    start = max(source.start, lake.kept_since or source.start)
    if end <= start:
        return found
    look_back = Window(max(start, end - settings.look_back_hours * HOUR), end)
    days = [(part, cursor) for part in reversed(list(look_back.by_day()))]
    if start < look_back.start:
        older = Window(start, look_back.start)
        day, following = swept_day(cursor, older.days())
        days.append((next(part for part in older.by_day() if part.start.date() == day), following.isoformat()))
    for part, cursor_after in days:
        if time.monotonic() > deadline:
            found.is_complete = False
            break
        from monitoring_pipeline.sources.opening import open_source

        account = accounted(lake, part)
        with open_source(source, tracking, lake.spark) as traces:
            counts = traces.counts(part)
        found.due.update(due_hours(counts, account))
        found.account.update(account)
        found.cursor = cursor_after
    return found


def swept_day(cursor: str | None, days: list[date]) -> tuple[date, date]:
    """The day of `days` (in order) to look at now, and the one for the next time: backwards, then from the latest."""
    latest = len(days) - 1
    try:
        index = days.index(date.fromisoformat(cursor)) if cursor else latest
    except ValueError:  # no such day (any more)
        index = latest
    return days[index], days[index - 1 if index else latest]


def _without_fresh_current_hour(found: Found, settings: SensorSettings, now: datetime) -> dict[datetime, HourCounts]:
    """The due hours but for the current one, where that was archived a short while ago."""
    current = floor_hour(now)
    row = found.account.get(current)
    is_fresh = row is not None and now < row.archived_at + timedelta(minutes=settings.current_hour_refresh_minutes)
    return {hour: counts for hour, counts in found.due.items() if not (hour == current and is_fresh)}


def _failures(hour: datetime, counts: HourCounts, found: Found, asked: list[AskedRun]) -> int:
    """How many ended runs of today for these counts left the hour as it is.

    A run that succeeded is one of them where the account was not written since: it would not help to ask again. Without
    an account the lake may have been deleted after it.
    """
    row = found.account.get(hour)
    same = [run for run in asked if run.counts.get(hour) == text_of(counts)]
    return sum(
        run.has_failed or (run.has_ended and row is not None and run.created_at > row.archived_at) for run in same
    )


def _requests(failures: dict[datetime, int]) -> Iterator[Request]:
    """The hours as ranges, the latest first; one that has failed stands alone, as it might fail the others."""
    hours: list[datetime] = []
    for hour in sorted(failures, reverse=True):
        follows = hours and hour + HOUR == hours[0] and len(hours) < HOURS_PER_RUN
        if hours and (failures[hour] or not follows):
            yield Request(hours, 1)
            hours = []
        if failures[hour]:
            yield Request([hour], failures[hour] + 1)
        else:
            hours.insert(0, hour)
    if hours:
        yield Request(hours, 1)


def _run_request(
    request: Request,
    due: dict[datetime, HourCounts],
    asked: list[AskedRun],
    settings: SensorSettings,
    now: datetime,
) -> dg.RunRequest:
    counts = {hour: text_of(due[hour]) for hour in request.hours}
    first, last = partition_key(request.hours[0]), partition_key(request.hours[-1])
    # Dagster launches no key twice: neither after a failure, nor when the lake has been deleted meanwhile.
    before = sum(run.counts.get(hour) == text for run in asked for hour, text in counts.items())
    tag = " ".join(counts.values())
    return dg.RunRequest(
        run_key=f"{first} {last} {tag} {now:%Y-%m-%d} {before + 1}",
        tags={
            RANGE_START: first,
            RANGE_END: last,
            ASKED_BY: SENSOR,
            COUNTS: tag,
            ATTEMPT: f"{request.attempt}/{settings.max_attempts}",
            PRIORITY: "1",  # before what is made of the archive, which would else be made once more
        },
    )


def _why_nothing(left: Mapping[str, Set[datetime]]) -> str:
    """Why no run is requested: the hours that differ all the same, by what is the matter with them."""
    named = {matter: ", ".join(partition_key(hour) for hour in sorted(hours)) for matter, hours in left.items()}
    return "; ".join(f"{matter}: {hours}" for matter, hours in named.items() if hours) or (
        "the archive has what the source has"
    )
