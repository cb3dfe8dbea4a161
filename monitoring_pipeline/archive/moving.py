"""Traces whose start moved to another hour after they were archived.

MLflow lowers a trace's start when a span that began earlier arrives late. Such a trace is archived under its new hour
first, then its results move there, and its old row is deleted last. If this is interrupted, the next run completes it,
and no trace is scored twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tombstones import MOVED_AT_MOST
from monitoring_pipeline.tables import AGENT_TRACES, TABLES, TIME
from monitoring_pipeline.windows import HOUR, Window

# Tables keyed by assessment_id move with the trace; all others are recomputed per hour.
CARRIED = [table for table in TABLES if table.key == ("assessment_id",)]
PLACE = ("trace_id", "trace_hour")
Hours = Mapping[str, datetime]


def follow_moved(
    lake: LakeResource, window: Window, seen: pa.Table, archive_moved: Callable[[dict[str, datetime]], Hours]
) -> int:
    """Move traces whose hour in the archive differs from their hour in the source; returns how many moved.

    `seen` (columns trace_id and trace_hour) are the traces that were just read from the source and archived.
    `archive_moved` receives the traces (id -> hour) that the archive has in `window` and that were not seen. It
    archives the ones that the source has in another hour there, and returns their new hours by id. Traces that the
    source has deleted stay.
    """
    known: dict[str, datetime] = {}
    stale = _places(lake, window).join(seen, list(PLACE), join_type="left anti")
    if seen.num_rows:
        # A trace seen now may be archived in a later hour. If hours are archived in order, later hours are empty.
        ahead = _places(lake, Window(window.end, window.end + MOVED_AT_MOST))
        stale = pa.concat_tables([stale, ahead.filter(pc.is_in(ahead["trace_id"], seen["trace_id"].combine_chunks()))])
        now = seen.filter(pc.is_in(seen["trace_id"], stale["trace_id"].combine_chunks()))
        known = dict(zip(now["trace_id"].to_pylist(), now["trace_hour"].to_pylist(), strict=True))
    if not stale.num_rows:
        return 0
    before = list(zip(stale["trace_id"].to_pylist(), stale["trace_hour"].to_pylist(), strict=True))
    unseen = {trace_id: hour for trace_id, hour in before if trace_id not in known}
    if unseen:
        known |= archive_moved(unseen)
    moved: defaultdict[datetime, dict[str, datetime]] = defaultdict(dict)
    for trace_id, hour in before:
        if known.get(trace_id, hour) != hour:
            moved[hour][trace_id] = known[trace_id]
    for hour, hours in moved.items():
        _carry(lake, hour, hours)
    return sum(map(len, moved.values()))


def places_of(rows: pa.Table) -> pa.Table:
    """Return the ids and hours of the traces, with nullable columns as joins return them."""
    return rows.select(PLACE).cast(pa.schema([("trace_id", pa.string()), ("trace_hour", TIME)]))


def _places(lake: LakeResource, window: Window) -> pa.Table:
    return places_of(lake.read_columns(AGENT_TRACES, window, *PLACE))


def _carry(lake: LakeResource, hour: datetime, hours: Hours) -> None:
    """Move the results of the traces from `hour` to their new `hours` (by id), and delete their old rows."""
    old = Window(hour, hour + HOUR)
    for table in CARRIED:
        rows = lake.read_columns(table, old, *table.columns.names)
        rows = rows.filter(pc.is_in(rows["trace_id"], pa.array(hours, pa.string())))
        if rows.num_rows:
            now = pa.array([hours[trace_id] for trace_id in rows["trace_id"].to_pylist()], rows["trace_hour"].type)
            lake.insert(table, rows.set_column(rows.column_names.index("trace_hour"), "trace_hour", now))
            lake.remove(table, old, "trace_id", hours.keys())
    lake.remove(AGENT_TRACES, old, "trace_id", hours.keys())
