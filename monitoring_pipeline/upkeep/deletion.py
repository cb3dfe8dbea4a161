"""Deletion on request: removes all data about given traces or users from the lake, verifies it, and keeps it out.

The request is first recorded in `deleted_traces`. From then on archiving skips these traces, and the next deletion or
upkeep completes an interrupted one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.errors import LakeError, MonitoringError
from monitoring_pipeline.keys import Names
from monitoring_pipeline.reports.files import remove_unfinished
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.tombstones import DESCRIBED, OF_SESSION, complete, is_about, trace_digest
from monitoring_pipeline.scoring.sessions import SPAN
from monitoring_pipeline.scoring.write_back import WRITTEN
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    DELETED_TRACES,
    QUARANTINED_TRACES,
    SUPERSEDED_ASSESSMENTS,
    TABLES,
    TIME,
    WRITTEN_BACK,
)
from monitoring_pipeline.upkeep.at_source import (
    check_deletable,
    database_file,
    delete_at_source,
    erase_deleted_rows,
    withdraw,
)
from monitoring_pipeline.upkeep.dagster_records import forget, records_about
from monitoring_pipeline.upkeep.marks import marks_of
from monitoring_pipeline.upkeep.others import wait_for_others
from monitoring_pipeline.upkeep.recount import Recount, hour_window
from monitoring_pipeline.upkeep.searching import marks_in, search
from monitoring_pipeline.upkeep.turns import announced, under_way
from monitoring_pipeline.windows import HOUR, Window

# The archive comes last, so that an interrupted deletion can find the traces there again.
OF_TRACES = sorted((t for t in TABLES if "trace_id" in t.schema.names), key=lambda table: table is AGENT_TRACES)
OF_SESSIONS = (ASSESSMENTS, SUPERSEDED_ASSESSMENTS)
Places = set[tuple[str, datetime]]


@dataclass
class Deletion:
    """The result of a deletion: traces, rows removed by table, and the rewritten reports and datasets.

    `records` counts the changed records of Dagster, `in_mlflow` the records removed from datasets in MLflow, and
    `at_source` the traces deleted in MLflow (None: not asked for). `searched` says what was searched at the end.
    """

    traces: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    reports: list[Path] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)
    records: int = 0
    in_mlflow: int = 0
    at_source: int | None = None
    searched: str = ""


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
    at_source: bool = False,
) -> Deletion:
    """Delete the traces with these ids and of these users, after other runs of the pipeline have ended.

    Runs that begin meanwhile wait for the deletion. With `at_source`, the traces are deleted in MLflow too.

    Raises:
        MonitoringError: the lake has no data about a trace or user, other runs do not end, a deletion failed, or MLflow
            cannot delete traces of the source.
    """
    if at_source:
        check_deletable(recount.settings.archive, recount.tracking)
    places = find(lake, trace_ids, user_ids)
    names = recount.settings.dagster.names
    with announced(instance, names, on_progress) as at:
        wait_for_others(instance, names, own_run_id, at, on_progress)
        request(lake, places, reference)
        return carry_out(lake, recount, instance, own_run_id, on_progress, user_ids, at_source)


def finish(
    lake: LakeResource,
    recount: Callable[[], Recount],
    instance: dg.DagsterInstance,
    names: Names,
    own_run_id: str | None,
    on_progress: Callable[[str], None] = lambda message: None,
) -> None:
    """Complete a deletion that was interrupted, if there is one and none is under way, which would complete it.

    Raises:
        MonitoringError: other runs do not end, or the deletion fails again.
    """
    if has_unfinished(lake) and not under_way(instance, names):
        with announced(instance, names, on_progress) as at:
            wait_for_others(instance, names, own_run_id, at, on_progress)
            carry_out(lake, recount(), instance, own_run_id, on_progress)


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
    lake: LakeResource,
    recount: Recount,
    instance: dg.DagsterInstance,
    own_run_id: str | None,
    on_progress: Callable[[str], None] = lambda message: None,
    user_ids: Collection[str] = (),
    at_source: bool = False,
) -> Deletion:
    """Delete the traces of all recorded requests; nothing else may use the lake meanwhile, see `turns`.

    Removes what Dagster's records quote of them and, `at_source`, the traces in MLflow. Then removes their rows from
    every table, recomputes the figures and reports of their hours and days, removes their records from the configured
    datasets, deletes files that still contain them, and searches for what is left of them. `user_ids` are searched for
    too.

    Raises:
        LakeError: a deletion failed, or something of a deleted trace is still there; a rerun resumes.
        MonitoringError: MLflow, Dagster's storage or a dataset cannot be changed; a rerun resumes.
    """
    wanted = _unfinished(lake)
    if not wanted:
        return Deletion()
    digests = frozenset().union(*wanted.values())
    deletion, names = Deletion(len(digests)), recount.settings.dagster.names
    ids = {hour: _ids(lake, hour_window(hour), of_hour) for hour, of_hour in sorted(wanted.items())}
    configured = recount.settings.model_dump_json()  # manifests of datasets repeat filters, which may name a user
    marks = marks_of(lake, ids, [user_id for user_id in user_ids if user_id not in configured])
    days = {hour.date() for hour in wanted}
    # Before the archive and the results lose the traces, so that an interrupted deletion can repeat it.
    on_sessions = {hour: _results_on_sessions(lake, hour, ids[hour], wanted[hour]) for hour in ids}
    _withdraw(lake, recount, [row for rows in on_sessions.values() for row in rows], marks.trace_ids)
    records = records_about(instance, names, days)
    deletion.records = forget(lake, instance, records, marks, names, own_run_id)
    if at_source:
        by_window = {hour_window(hour): of_hour for hour, of_hour in ids.items()}
        deletion.at_source = delete_at_source(lake, recount.tracking, by_window)
    for hour, of_hour in ids.items():
        window = hour_window(hour)
        for table in OF_SESSIONS:
            if results := {row["assessment_id"] for row in on_sessions[hour]}:
                deletion.rows[table.name] += lake.remove(table, _around(hour), "assessment_id", results)
        for other in {row["trace_hour"] for row in on_sessions[hour]}:
            recount.hour(hour_window(other))
            days.add(other.date())
        for table in OF_TRACES:
            if removed := lake.remove(table, window, "trace_id", of_hour):
                deletion.rows[table.name] += removed
        if lake.kept_since is None or hour >= lake.kept_since:  # an older hour has no traces left to derive from
            recount.hour(window)
        on_progress(f"{window}: {len(wanted[hour])} traces")
    by_day = [Period.day(day) for day in sorted(days)]
    for day in by_day:
        recount.agreement(day.window)
    for period in [*by_day, *dict.fromkeys(Period.week_of(day.first_day) for day in by_day)]:
        deletion.reports += recount.report(period)
    # An interrupted deletion may have removed results on sessions that began earlier, but not their reports.
    reports = Path(recount.settings.reports.location)
    earlier = {day - timedelta(days=n) for day in days for n in range(1, SPAN.days + 1)} - days
    is_repeated = len(marks.trace_ids) < len(digests)
    for period in dict.fromkeys(kind(day) for kind in (Period.day, Period.week_of) for day in sorted(earlier)):
        if is_repeated or any(marks_in(file, marks) for file in (reports / period.name).glob("report.*")):
            deletion.reports += recount.report(period)
    remove_unfinished(reports)
    deletion.datasets += recount.datasets(digests)
    deletion.in_mlflow = recount.datasets_in_mlflow(digests)
    if at_source or deletion.in_mlflow:
        erase_deleted_rows(recount.tracking)
    for table in TABLES:
        lake.purge(table)
    _check_gone(lake, wanted)
    in_mlflow = database_file(recount.tracking) if at_source else None
    found = search(lake, recount.settings, marks, records, [in_mlflow] if in_mlflow else [])
    if found.left:
        raise LakeError(f"{found}; remove the traces there, and run `monitoring-pipeline upkeep` to finish")
    deletion.searched = str(found)
    on_progress(deletion.searched)
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


def _results_on_sessions(
    lake: LakeResource, hour: datetime, ids: set[str], digests: frozenset[str]
) -> list[dict[str, Any]]:
    """The results on sessions of the traces of the hour, which describe the traces too; with their ids and hours."""
    traces = lake.read_columns(AGENT_TRACES, hour_window(hour), "trace_id", "experiment_id", "session_id")
    traces = traces.filter(pc.is_in(traces["trace_id"], pa.array(ids, pa.string())))
    sessions = {(row["experiment_id"], row["session_id"]) for row in traces.to_pylist() if row["session_id"]}
    columns = ("assessment_id", "trace_id", "trace_hour", "experiment_id", "session_id", OF_SESSION)
    found: list[dict[str, Any]] = []
    for table in OF_SESSIONS:
        results = lake.read_columns(table, _around(hour), *columns)
        results = results.filter(pc.is_valid(results["session_id"]))
        pairs = zip(results["experiment_id"].to_pylist(), results["session_id"].to_pylist(), strict=True)
        is_of = pa.array([pair in sessions for pair in pairs], pa.bool_())
        affected = results.filter(pc.or_(is_of, is_about(results, digests)))
        found += affected.select(["assessment_id", "trace_id", "trace_hour"]).to_pylist()
    return found


def _around(hour: datetime) -> Window:
    """The hours of results on sessions that may contain a trace of the hour."""
    return Window(hour - SPAN, hour + HOUR + SPAN)


def _withdraw(lake: LakeResource, recount: Recount, results: list[dict[str, Any]], trace_ids: Collection[str]) -> None:
    """Delete the feedback with these results in MLflow, and the archive's copy of it, except on deleted traces."""
    kept = [row for row in results if row["trace_id"] not in trace_ids]
    if not kept:
        return
    sent = lake.read_columns(
        WRITTEN_BACK, Window.covering([row["trace_hour"] for row in kept]), "assessment_id", "outcome"
    )
    sent_ids = set(sent.filter(pc.equal(sent["outcome"], WRITTEN))["assessment_id"].to_pylist())
    if feedback := {row["assessment_id"]: row["trace_id"] for row in kept if row["assessment_id"] in sent_ids}:
        withdraw(recount.tracking, feedback)
        erase_deleted_rows(recount.tracking)
        for hour in sorted({row["trace_hour"] for row in kept if row["assessment_id"] in feedback}):
            archive_window(recount.settings.archive, recount.tracking, lake, hour_window(hour))


def _check_gone(lake: LakeResource, wanted: dict[datetime, frozenset[str]]) -> None:
    digests = frozenset().union(*wanted.values())
    hours = Window(min(wanted) - SPAN, max(wanted) + HOUR)
    for table in OF_TRACES:
        for part in hours.by_day():
            rows = lake.read_columns(table, part, *DESCRIBED.intersection(table.schema.names))
            if left := pc.sum(is_about(rows, digests)).as_py():
                raise LakeError(f"{left} rows about deleted traces are in {table.name} again; run the deletion again")


def _complete(lake: LakeResource, wanted: dict[datetime, frozenset[str]]) -> None:
    now = datetime.now(UTC)
    for hour, digests in wanted.items():
        complete(lake, hour_window(hour), digests, now)
