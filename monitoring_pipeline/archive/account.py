"""The account of archived hours: the source's counts of each hour just before it was read.

It is stored in the table `archived_hours`. An hour is due when the source's counts differ from its row. A trace that
arrives while its hour is read is not in the counts, so the hour becomes due again. An hour with traces in quarantine is
also due from time to time, as the source may only have been unable to send them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow.compute as pc

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.sources.base import NOTHING, HourCounts
from monitoring_pipeline.tables import AGENT_TRACES, ARCHIVED_HOURS, DELETED_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.windows import Window

SHORTEST_PAUSE, TRIED_FOR = timedelta(minutes=10), timedelta(days=2)  # tries on three days


@dataclass(frozen=True)
class AccountedHour:
    """The source's counts of an hour at its last archive run, and the time of that run.

    If the hour has traces in quarantine: the times of the first and the latest run that could not read them.
    """

    counts: HourCounts
    archived_at: datetime
    unreadable_since: datetime | None = None
    unreadable_at: datetime | None = None

    def is_worth_retrying(self, now: datetime) -> bool:
        """Whether traces in quarantine are due for another try; each pause is as long as all before it."""
        if self.unreadable_since is None or self.unreadable_at is None:
            return False
        tried_for = self.unreadable_at - self.unreadable_since
        return tried_for < TRIED_FOR and now - self.unreadable_at >= max(tried_for, SHORTEST_PAUSE)


COLUMNS = ("source_traces", "source_in_progress", "source_assessments", "source_mark", "archived_at")
UNREADABLE = ("unreadable_since", "unreadable_at")


def accounted(lake: LakeResource, window: Window) -> dict[datetime, AccountedHour]:
    """Return the account of the hours in `window`, without hours that were never archived or never had a trace.

    Raises:
        LakeError: the lake cannot be opened.
    """
    rows = lake.read_columns(ARCHIVED_HOURS, window, "hour", *COLUMNS, *UNREADABLE).to_pylist()
    found: dict[datetime, AccountedHour] = {}
    for row in rows:
        *counts, archived_at = (row[name] for name in COLUMNS)
        found[row["hour"]] = AccountedHour(HourCounts(*counts), archived_at, *(row[name] for name in UNREADABLE))
    return found


def keep_account(
    lake: LakeResource,
    window: Window,
    counts: Mapping[datetime, HourCounts],
    counted_at: datetime,
    leaving_out: Container[datetime] = (),
) -> None:
    """Record that the hours of `window`, except `leaving_out`, were archived, with the source's `counts`.

    Commits nothing if nothing changed.

    Raises:
        LakeError: the lake cannot be written.
    """
    before = accounted(lake, window)
    unreadable = {*lake.read_columns(QUARANTINED_TRACES, window, "trace_hour")["trace_hour"].to_pylist()}
    hours = counts.keys() | before.keys()
    rows = []
    for hour in sorted(hour for hour in hours if hour in window and hour not in leaving_out):
        source = counts.get(hour, NOTHING)
        values = (source.traces, source.in_progress, source.assessments, source.mark, counted_at)
        row = {"hour": hour, **dict(zip(COLUMNS, values, strict=True))}
        if hour in unreadable:
            since = before[hour].unreadable_since if hour in before else None
            row |= {"unreadable_since": since or counted_at, "unreadable_at": counted_at}
        rows.append(row)
    lake.upsert(ARCHIVED_HOURS, from_dicts(ARCHIVED_HOURS, rows))


def due_hours(
    counts: Mapping[datetime, HourCounts], account: Mapping[datetime, AccountedHour], now: datetime
) -> dict[datetime, HourCounts]:
    """Return the hours whose `counts` at the source differ from the account, or with traces to try again at `now`.

    With these counts, oldest first.
    """
    due = {
        hour: counts.get(hour, NOTHING)
        for hour in counts.keys() | account.keys()
        if counts.get(hour, NOTHING).differ_from(account[hour].counts if hour in account else NOTHING)
        or (hour in account and account[hour].is_worth_retrying(now))
    }
    return dict(sorted(due.items()))


def lacking(lake: LakeResource, window: Window, counts: Mapping[datetime, HourCounts]) -> dict[datetime, int]:
    """How many of the source's traces the lake lacks of each hour of `counts`, for hours that lack any.

    Traces in the archive, in quarantine and deleted on request count as present, each once.
    """
    present = Counter[datetime]()
    for table in (AGENT_TRACES, DELETED_TRACES):
        hours = lake.read_columns(table, window, "trace_hour")["trace_hour"].value_counts().to_pylist()
        present.update({hour["values"]: hour["counts"] for hour in hours})
    unreadable = lake.read_columns(QUARANTINED_TRACES, window, "trace_id", "trace_hour")
    if unreadable.num_rows:  # some may have been archived before
        archived = lake.read_columns(AGENT_TRACES, window, "trace_id")["trace_id"]
        alone = unreadable.filter(pc.invert(pc.is_in(unreadable["trace_id"], archived.combine_chunks())))
        present.update(alone["trace_hour"].to_pylist())
    short = {hour: of_hour.traces - present[hour] for hour, of_hour in counts.items() if hour in window}
    return {hour: number for hour, number in sorted(short.items()) if number > 0}
