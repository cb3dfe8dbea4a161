"""Traces that stand in tables: the engine finds and groups them, its workers make rows of `agent_traces` of them.

A source gives a DataFrame with a row a trace: `trace_id`, `started` (as a timestamp or a number, see `nanoseconds`) and
whatever its own `build` makes an `mlflow.entities.Trace` of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.archive.merging import ArchiveCounts, removed, update_quarantine
from monitoring_pipeline.archive.moving import PLACE, follow_moved, places_of
from monitoring_pipeline.archive.tombstones import deleted_digests, trace_digest
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.sources.tables import ARCHIVED, WORKED, WORKER_ROWS
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.redaction import Redactor
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


UNREADABLE = [column.name for column in QUARANTINED_TRACES.schema if column.name != "date"]


def archive_frame(
    lake: LakeResource,
    window: Window,
    frame: Callable[[Window], DataFrame],
    on_progress: Callable[[int], None] = lambda read: None,
    redactor: Redactor | None = None,
) -> ArchiveCounts:
    """Merge what `frame` gives (see `worked`) of `window` into the archive, or into the quarantine.

    Into a catalog day by day, and the traces stay in the engine; else hour by hour, so that the memory needed is that
    of one hour. `on_progress` is told the number of traces so far. `redactor` takes out of all of them, on the engine's
    workers, what is not to be kept.
    """
    counts = ArchiveCounts()
    deleted = deleted_digests(lake, window)
    seen: list[pa.Table] = []
    quarantine: dict[str, dict[str, Any]] = {}
    parts, merged = (window.by_day(), _merged_in_engine) if lake.is_in_catalog else (window.by_hour(), _merged_here)
    for part in parts:
        rows = frame(part)
        if redactor:
            rows = redacted_rows(rows, redactor)
        unreadable, places = merged(lake, part, rows, deleted, counts)
        seen.append(places)
        quarantine.update({row["trace_id"]: row for row in unreadable.select(UNREADABLE).to_pylist()})
        on_progress(counts.read)
    counts.quarantined = update_quarantine(lake, window, quarantine)
    # A table is not asked for single traces: one that has moved is followed when its new hour is archived.
    counts.moved = follow_moved(lake, window, pa.concat_tables(seen), lambda hours: {})
    return counts


def _merged_here(
    lake: LakeResource, part: Window, frame: DataFrame, deleted: frozenset[str], counts: ArchiveCounts
) -> tuple[pa.Table, pa.Table]:
    """Write the traces but those `deleted` on request, and count them.

    Returns those that cannot be archived, and the places (see `places_of`) of the others.
    """
    rows = frame.toArrow()
    counts.read += rows.num_rows
    if deleted:
        kept = pa.array(
            [trace_digest(trace_id) not in deleted for trace_id in rows["trace_id"].to_pylist()], pa.bool_()
        )
        counts.deleted += rows.num_rows - rows.filter(kept).num_rows
        rows = rows.filter(kept)
    failed = pc.is_valid(rows["reason"])
    readable = rows.filter(pc.invert(failed)).select(ARCHIVED.names)
    counts.redactions += removed(readable)
    counts.written += lake.upsert(AGENT_TRACES, readable, part)
    return rows.filter(failed), places_of(readable)


def _merged_in_engine(
    lake: LakeResource, part: Window, frame: DataFrame, deleted: frozenset[str], counts: ArchiveCounts
) -> tuple[pa.Table, pa.Table]:
    """As `_merged_here`."""
    from pyspark.sql import functions as F

    with _computed_once(frame):
        is_kept = ~F.sha2("trace_id", 256).isin(*deleted) if deleted else F.lit(True)
        read, kept = frame.count(), frame.where(is_kept)
        failed = kept["reason"].isNotNull()
        counts.read += read
        counts.deleted += read - kept.count() if deleted else 0
        counts.redactions += removed(kept.where("redactions IS NOT NULL").select("redactions").toArrow())
        counts.written += lake.upsert(AGENT_TRACES, kept.where(~failed).select(*ARCHIVED.names), part)
        return kept.where(failed).toArrow(), places_of(kept.where(~failed).select(*PLACE).toArrow())


def redacted_rows(rows: DataFrame, redactor: Redactor) -> DataFrame:
    """The rows of `worked` without what is not to be kept; those for which that fails go to the quarantine."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return rows.mapInArrow(functools.partial(_redacted, redactor=redactor), from_arrow_schema(WORKED))


def _redacted(batches: Iterator[pa.RecordBatch], redactor: Redactor) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for first in range(0, batch.num_rows, WORKER_ROWS):
            rows = pa.Table.from_batches([batch.slice(first, WORKER_ROWS)]).to_pylist(maps_as_pydicts="lossy")
            yield from pa.Table.from_pylist([_redacted_row(row, redactor) for row in rows], schema=WORKED).to_batches()


def _redacted_row(row: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    if row["reason"] is not None:
        return {**row, "reason": redactor.text(row["reason"]), "raw": redactor.raw(row["raw"])}
    try:
        return redactor.row(row)
    except Exception as error:  # noqa: BLE001 - malformed content may raise anything; its text is not known to be clean
        known = {name: row[name] for name in ("trace_id", "created_at", "trace_hour")}
        return {**known, "reason": f"it cannot be redacted: {type(error).__name__}", "raw": ""}


@contextmanager
def _computed_once(frame: DataFrame) -> Iterator[None]:
    """Within the block the engine keeps the rows, where it can: Databricks' serverless compute computes them again."""
    from pyspark.errors import PySparkException

    with suppress(PySparkException):
        frame.persist()
    try:
        yield
    finally:
        with suppress(PySparkException):
            frame.unpersist()


# ---- MLflow's entities ----
