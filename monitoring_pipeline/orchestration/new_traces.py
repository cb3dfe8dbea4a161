"""The sensor `new_traces`: compares the source with the archive's account by hour, and requests hours that differ.

It compares states and does not follow events: after a missed tick, a crash or a week offline, the next tick finds the
hours that differ. Its cursor holds only which older day it compares next.
"""

import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from monitoring_pipeline.archive.account import AccountedHour, accounted, due_hours
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.keys import (
    ARCHIVE,
    ATTEMPT_TAG,
    COUNTS_TAG,
    NEW_TRACES,
    PRIORITY,
    RANGE_END,
    RANGE_START,
    REQUESTED_BY_TAG,
    Names,
    partition_key,
)
from monitoring_pipeline.orchestration.naming import with_named_resources
from monitoring_pipeline.orchestration.requested_runs import (
    RequestedRun,
    hours_in_progress,
    requested_today,
    text_of,
)
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource, impatience
from monitoring_pipeline.settings import ArchiveSettings, SensorSettings
from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.windows import HOUR, Window, floor_hour

BUDGET_SECONDS = 25.0  # no further day is compared after this time; Dagster ends a tick after 60 seconds
SWEEP_SECONDS = 1.0  # a year of days takes minutes, and the sensor at most some percent of a core
HOURS_PER_RUN = 24
RUNS_PER_TICK = 10  # the next tick requests more


@dataclass
class Found:
    """The result of a comparison: the hours that differ, the account of all compared hours, and the progress."""

    due: dict[datetime, HourCounts] = field(default_factory=dict)
    account: dict[datetime, AccountedHour] = field(default_factory=dict)
    cursor: str | None = None
    is_complete: bool = True


@dataclass(frozen=True)
class Request:
    """Consecutive hours for one archive run, and its attempt number."""

    hours: list[datetime]
    attempt: int


def new_traces_sensor(
    source: ArchiveSettings, settings: SensorSettings, names: Names, is_running: bool
) -> dg.SensorDefinition:
    """The sensor. It starts with Dagster if `is_running`; otherwise it is enabled in the UI."""
    status = dg.DefaultSensorStatus.RUNNING if is_running else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name=names.definition(NEW_TRACES),
        job_name=names.definition(ARCHIVE),
        minimum_interval_seconds=settings.interval_seconds,
        default_status=status,
        description="Compares the source with the archive, hour by hour, and requests runs for hours that differ.",
    )
    @with_named_resources(names)
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
                f"comparing the source took more than {BUDGET_SECONDS:.0f} seconds; lower [sensor] look_back_hours"
            )
        in_progress = hours_in_progress(context.instance, names, now) & found.due.keys()
        requested = requested_today(context.instance, names, now)
        fresh = _without_fresh_current_hour(found, settings, now)
        open_hours = {hour: counts for hour, counts in fresh.items() if hour not in in_progress}
        failures = {hour: _failures(hour, counts, found, requested) for hour, counts in open_hours.items()}
        for hour in (hour for hour, number in failures.items() if number >= settings.max_attempts):
            context.log.error(
                f"{partition_key(hour)} is not requested again today: {failures[hour]} runs failed to archive what the "
                "source now has; see these runs"
            )
        wanted = {hour: number for hour, number in failures.items() if number < settings.max_attempts}
        requests = list(_requests(wanted))
        if not requests:
            left = {
                "given up for today": open_hours.keys() - wanted.keys(),
                "being archived": in_progress,
                "archived a short while ago": found.due.keys() - fresh.keys(),
            }
            return dg.SensorResult(skip_reason=_why_nothing(left), cursor=found.cursor)
        return dg.SensorResult(
            run_requests=[
                _run_request(request, found.due, requested, settings, names, now)
                for request in requests[:RUNS_PER_TICK]
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
    """Compare the look-back, day by day from the latest, then older days from the one in `cursor`, else the latest.

    Older days are compared for `SWEEP_SECONDS`, at least one, until each has been compared once or one differs.

    Raises:
        TrackingError, LakeError: source or lake cannot be read.
    """
    from monitoring_pipeline.sources.opening import open_source

    deadline = time.monotonic() + BUDGET_SECONDS
    found = Found(cursor=cursor)
    end = floor_hour(now) + HOUR
    start = max(source.start, lake.kept_since or source.start)
    if end <= start:
        return found

    look_back = Window(max(start, end - settings.look_back_hours * HOUR), end)
    days = [*Window(start, look_back.start).by_day()] if start < look_back.start else []
    older = {part.start.date(): part for part in days}
    with open_source(source, tracking, lake.spark) as traces:

        def compare(part: Window) -> dict[datetime, HourCounts]:
            account = accounted(lake, part)
            due = due_hours(traces.counts(part), account, now)
            found.due.update(due)
            found.account.update(account)
            return due

        for part in reversed([*look_back.by_day()]):
            if time.monotonic() > deadline:
                found.is_complete = False
                return found
            compare(part)
        sweep_end = min(deadline, time.monotonic() + SWEEP_SECONDS)
        for _ in older:
            day, following = swept_day(found.cursor, [*older])
            differs = compare(older[day])
            found.cursor = following.isoformat()
            if differs or time.monotonic() >= sweep_end:
                break
    return found


def swept_day(cursor: str | None, days: list[date]) -> tuple[date, date]:
    """The day of `days` (in order) to compare now, and the one for the next tick: backwards, then from the latest."""
    latest = len(days) - 1
    try:
        index = days.index(date.fromisoformat(cursor)) if cursor else latest
    except ValueError:  # the day is not in the list, or no longer
        index = latest
    return days[index], days[index - 1 if index else latest]


def _without_fresh_current_hour(found: Found, settings: SensorSettings, now: datetime) -> dict[datetime, HourCounts]:
    """The due hours, without the current one if it was archived a short while ago."""
    current = floor_hour(now)
    row = found.account.get(current)
    is_fresh = row is not None and now < row.archived_at + timedelta(minutes=settings.current_hour_refresh_minutes)
    return {hour: counts for hour, counts in found.due.items() if not (hour == current and is_fresh)}


def _failures(hour: datetime, counts: HourCounts, found: Found, requested: list[RequestedRun]) -> int:
    """The number of today's runs for these counts that ended and left the hour due.

    A successful run counts if the account was not written after it, because another run would not help. If there is no
    account, it does not count: the lake may have been deleted after the run.
    """
    row = found.account.get(hour)
    same = [run for run in requested if run.counts.get(hour) == text_of(counts)]
    return sum(
        run.has_failed or (run.has_ended and row is not None and run.created_at > row.archived_at) for run in same
    )


def _requests(failures: dict[datetime, int]) -> Iterator[Request]:
    """The hours as ranges, the latest first; an hour that has failed gets its own run."""
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
    requested: list[RequestedRun],
    settings: SensorSettings,
    names: Names,
    now: datetime,
) -> dg.RunRequest:
    counts = {hour: text_of(due[hour]) for hour in request.hours}
    first, last = partition_key(request.hours[0]), partition_key(request.hours[-1])
    # Dagster never launches a run key again, not even after a failure or after the lake has been deleted.
    before = sum(run.counts.get(hour) == text for run in requested for hour, text in counts.items())
    tag = " ".join(counts.values())
    return dg.RunRequest(
        run_key=f"{first} {last} {tag} {now:%Y-%m-%d} {before + 1}",
        tags={
            RANGE_START: first,
            RANGE_END: last,
            REQUESTED_BY_TAG: names.definition(NEW_TRACES),
            COUNTS_TAG: tag,
            ATTEMPT_TAG: f"{request.attempt}/{settings.max_attempts}",
            PRIORITY: "1",  # ahead of downstream runs, which would otherwise run twice
        },
    )


def _why_nothing(left: Mapping[str, Set[datetime]]) -> str:
    """Why no run is requested: the hours that differ, grouped by the reason for skipping them."""
    named = {reason: ", ".join(partition_key(hour) for hour in sorted(hours)) for reason, hours in left.items()}
    return "; ".join(f"{reason}: {hours}" for reason, hours in named.items() if hours) or (
        "the archive has what the source has"
    )
