"""Deletion on request: removes all data about given traces or users from the lake, verifies it, and keeps it out.

The request is first recorded in `deleted_traces`. From then on archiving skips these traces, and the next deletion or
upkeep completes an interrupted one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.errors import LakeError, MonitoringError
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.tombstones import complete, trace_digest
from monitoring_pipeline.scoring.sessions import SPAN
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    DELETED_TRACES,
    QUARANTINED_TRACES,
    SUPERSEDED_ASSESSMENTS,
    TABLES,
    TIME,
)
from monitoring_pipeline.upkeep.others import wait_for_others
from monitoring_pipeline.upkeep.recount import Recount, hour_window
from monitoring_pipeline.windows import HOUR, Window

# The archive comes last, so that an interrupted deletion can find the traces there again.
OF_TRACES = sorted((t for t in TABLES if "trace_id" in t.schema.names), key=lambda table: table is AGENT_TRACES)
Places = set[tuple[str, datetime]]


@dataclass
class Deletion:
    """The result of a deletion: traces, rows removed by table, and the rewritten reports and datasets."""

    traces: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    reports: list[Path] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)


def find(lake: LakeResource, trace_ids: Collection[str], user_ids: Collection[str]) -> Places:
    """Return the traces with these ids and of these users, each with its hours in the lake.

    A user's traces are those with that `user_id`, and those in quarantine whose text contains the id as a word.

    Raises:
        MonitoringError: the lake has no data about a trace or a user.
    """
    if not trace_ids and not user_ids:
        raise MonitoringError("nothing to delete: pass ids of traces or users")
    found_ids = set(trace_ids)
    for user_id in user_ids:
        user_traces = _traces_of_user(lake, user_id)
        if not user_traces:
            raise MonitoringError(f"user {user_id!r}: the lake has no trace of that user; check the id")
        found_ids |= user_traces
    places = _places(lake, found_ids)
    known = {trace_id for trace_id, _ in places}
    if missing := sorted(set(trace_ids) - known):
        raise MonitoringError(f"no trace {', '.join(missing[:5])} in the lake; check the id, or leave it out")
    return places


def preview(lake: LakeResource, places: Places) -> Deletion:
    """Return the rows that deleting the traces would remove, except results on their sessions."""
    deletion = Deletion(len({trace_id for trace_id, _ in places}))
    by_hour: defaultdict[datetime, set[str]] = defaultdict(set)
    for trace_id, hour in places:
        by_hour[hour].add(trace_id)
    for hour, ids in by_hour.items():
        for table in OF_TRACES:
            found = lake.read_columns(table, hour_window(hour), "trace_id")["trace_id"]
            if count := pc.sum(pc.is_in(found, pa.array(ids, pa.string()))).as_py():
                deletion.rows[table.name] += count
    return deletion


def delete(
    lake: LakeResource,
    recount: Recount,
    instance: dg.DagsterInstance,
    own_run_id: str | None,
    trace_ids: Collection[str],
    user_ids: Collection[str],
    reference: str | None = None,
    on_progress: Callable[[str], None] = lambda message: None,
) -> Deletion:
    """Delete the traces with these ids and of these users, after other runs of the pipeline have ended.

    Raises:
        MonitoringError: the lake has no data about a trace or user, other runs do not end, or a deletion failed.
    """
    places = find(lake, trace_ids, user_ids)
    wait_for_others(instance, recount.settings.dagster.names, own_run_id, on_progress)
    request(lake, places, reference)
    return carry_out(lake, recount, on_progress)


def has_unfinished(lake: LakeResource) -> bool:
    """Return whether a requested deletion is not complete."""
    return bool(_unfinished(lake))


def request(lake: LakeResource, places: Places, reference: str | None) -> None:
    """Record the request to delete the traces; `reference` is its id in the system that it came from."""
    now = datetime.now(UTC)
    rows = [
        {
            "trace_digest": trace_digest(trace_id),
            "trace_hour": hour,
            "request_reference": reference,
            "requested_at": now,
            "completed_at": None,
        }
        for trace_id, hour in sorted(places)
    ]
    lake.upsert(DELETED_TRACES, from_dicts(DELETED_TRACES, rows))


def carry_out(
    lake: LakeResource, recount: Recount, on_progress: Callable[[str], None] = lambda message: None
) -> Deletion:
    """Delete the traces of all recorded requests; nothing else may use the lake meanwhile.

    Removes their rows from every table, recomputes the figures and reports of their hours and days, removes their
    records from the configured datasets, deletes files that still contain them, and then checks that no row is left.

    Raises:
        LakeError: a deletion failed, or a deleted row is still there; a rerun resumes.
    """
    wanted = _unfinished(lake)
    deletion = Deletion(len({digest for _, digests in wanted.items() for digest in digests}))
    for hour, digests in sorted(wanted.items()):
        window = hour_window(hour)
        ids = _ids(lake, window, digests)
        for other in _remove_of_sessions(lake, window, ids, deletion.rows):
            recount.hour(hour_window(other))
        for table in OF_TRACES:
            if removed := lake.remove(table, window, "trace_id", ids):
                deletion.rows[table.name] += removed
        if lake.kept_since is None or hour >= lake.kept_since:  # an older hour has no traces left to derive from
            recount.hour(window)
        on_progress(f"{window}: {len(digests)} traces")
    if not wanted:
        return deletion
    days = [Period.day(day) for day in sorted({hour.date() for hour in wanted})]
    for day in days:
        recount.agreement(day.window)
    for period in [*days, *dict.fromkeys(Period.week_of(day.first_day) for day in days)]:
        deletion.reports += recount.report(period)
    deletion.datasets += recount.datasets(frozenset().union(*wanted.values()))
    for table in TABLES:
        lake.purge(table)
    _check_gone(lake, wanted)
    _complete(lake, wanted)
    return deletion


def _traces_of_user(lake: LakeResource, user_id: str) -> set[str]:
    from pyspark.sql import functions as F

    archived = lake.read(AGENT_TRACES).where(F.col("user_id") == F.lit(user_id)).select("trace_id")
    unread = lake.read(QUARANTINED_TRACES).select("trace_id", "raw").where(F.contains("raw", F.lit(user_id)))
    return {row["trace_id"] for row in archived.collect()} | {
        row["trace_id"] for row in unread.collect() if _has_word(row["raw"], user_id)
    }


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _places(lake: LakeResource, trace_ids: Collection[str]) -> Places:
    from pyspark.sql import functions as F

    places: Places = set()
    for table in OF_TRACES:
        rows = lake.read(table).where(F.col("trace_id").isin(*trace_ids)).select("trace_id", "trace_hour").distinct()
        found = rows.toArrow()
        places |= set(zip(found["trace_id"].to_pylist(), found["trace_hour"].cast(TIME).to_pylist(), strict=True))
    return places


def _unfinished(lake: LakeResource) -> dict[datetime, frozenset[str]]:
    """The digests of the traces that are still to delete, by hour."""
    rows = lake.read(DELETED_TRACES).where("completed_at IS NULL").select("trace_hour", "trace_digest").toArrow()
    wanted: defaultdict[datetime, set[str]] = defaultdict(set)
    for hour, digest in zip(rows["trace_hour"].cast(TIME).to_pylist(), rows["trace_digest"].to_pylist(), strict=True):
        wanted[hour].add(digest)
    return {hour: frozenset(digests) for hour, digests in wanted.items()}


def _ids(lake: LakeResource, window: Window, digests: frozenset[str]) -> set[str]:
    """The ids of the traces with these digests that the lake has in the window."""
    found: set[str] = set()
    for table in OF_TRACES:
        found |= set(pc.unique(lake.read_columns(table, window, "trace_id")["trace_id"]).to_pylist())
    return {trace_id for trace_id in found if trace_digest(trace_id) in digests}


def _remove_of_sessions(lake: LakeResource, window: Window, ids: set[str], rows: Counter[str]) -> set[datetime]:
    """Remove the results on the traces' sessions, which describe the traces too; returns the hours of these results."""
    traces = lake.read_columns(AGENT_TRACES, window, "trace_id", "experiment_id", "session_id")
    traces = traces.filter(pc.is_in(traces["trace_id"], pa.array(ids, pa.string())))
    sessions = {(row["experiment_id"], row["session_id"]) for row in traces.to_pylist() if row["session_id"]}
    if not sessions:
        return set()
    around = Window(window.start - SPAN, window.end + SPAN)
    columns = ("assessment_id", "trace_hour", "experiment_id", "session_id")
    hours: set[datetime] = set()
    for table in (ASSESSMENTS, SUPERSEDED_ASSESSMENTS):
        results = lake.read_columns(table, around, *columns).to_pylist()
        affected = [row for row in results if (row["experiment_id"], row["session_id"]) in sessions]
        if affected:
            rows[table.name] += lake.remove(table, around, "assessment_id", {row["assessment_id"] for row in affected})
            hours |= {row["trace_hour"] for row in affected}
    return hours


def _check_gone(lake: LakeResource, wanted: dict[datetime, frozenset[str]]) -> None:
    digests = frozenset().union(*wanted.values())
    hours = Window(min(wanted), max(wanted) + HOUR)
    for table in OF_TRACES:
        for part in hours.by_day():
            found = pc.unique(lake.read_columns(table, part, "trace_id")["trace_id"]).to_pylist()
            if left := sum(trace_digest(trace_id) in digests for trace_id in found):
                raise LakeError(f"{left} deleted traces are in {table.name} again; run the deletion again")


def _complete(lake: LakeResource, wanted: dict[datetime, frozenset[str]]) -> None:
    now = datetime.now(UTC)
    for hour, digests in wanted.items():
        complete(lake, hour_window(hour), digests, now)
