"""The merge of traces that the engine reads from tables: its workers convert them to rows of `agent_traces`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.archive.merging import ArchiveCounts, WindowMerge, redactions
from monitoring_pipeline.archive.moving import PLACE, places_of
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tombstones import without_deleted
from monitoring_pipeline.sources.base import Batch, TraceFrames
from monitoring_pipeline.sources.tables import ARCHIVED, FLATTENED, WORKER_ROWS
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.redaction import Redactor
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

QUARANTINE_COLUMNS = QUARANTINED_TRACES.columns.names


def archive_frames(
    lake: LakeResource,
    traces: TraceFrames,
    experiment_names: dict[str, str],
    on_progress: Callable[[int], None],
    redactor: Redactor | None,
    read_moved: Callable[[Mapping[str, datetime]], Iterable[Batch]],
) -> ArchiveCounts:
    """Merge the traces into `agent_traces`; traces that cannot be flattened go into `quarantined_traces`.

    A lake in a catalog is merged day by day, and the traces stay in the engine. Any other lake is merged hour by hour,
    so that only the traces of one hour are in memory. The other arguments are as for `merging.archive`; the engine's
    workers redact.
    """
    merge = WindowMerge(lake, traces.window, experiment_names, redactor, on_progress)
    parts, merge_part = (
        (traces.window.by_day(), _merge_in_engine) if lake.is_in_catalog else (traces.window.by_hour(), _merge_here)
    )
    for part in parts:
        rows = traces.frame_of(part)
        merge_part(merge, part, redacted_rows(rows, redactor) if redactor else rows)
    return merge.finish(read_moved)


def _merge_here(merge: WindowMerge, part: Window, frame: DataFrame) -> None:
    """Merge the rows of one part of the window in this process's memory."""
    rows = frame.toArrow()
    read = rows.num_rows
    rows = without_deleted(rows, merge.deleted)
    merge.counts.deleted += read - rows.num_rows
    failed = pc.is_valid(rows["reason"])
    readable = rows.filter(pc.invert(failed)).select(ARCHIVED.names)
    merge.counts.redactions += redactions(readable)
    merge.counts.written += merge.lake.upsert(AGENT_TRACES, readable, part)
    merge.note(read, places_of(readable), _quarantine_rows(rows.filter(failed)))


def _merge_in_engine(merge: WindowMerge, part: Window, frame: DataFrame) -> None:
    """Merge the rows of one part of the window without leaving the engine."""
    with _computed_once(frame):
        read, kept = frame.count(), without_deleted(frame, merge.deleted)
        readable, failed = kept.where(kept["reason"].isNull()), kept.where(kept["reason"].isNotNull())
        merge.counts.deleted += read - kept.count() if merge.deleted else 0
        redacted = readable.where("redactions IS NOT NULL")
        merge.counts.redactions += redactions(redacted.select("redactions").toArrow())
        merge.counts.written += merge.lake.upsert(AGENT_TRACES, readable.select(*ARCHIVED.names), part)
        merge.note(read, places_of(readable.select(*PLACE).toArrow()), _quarantine_rows(failed.toArrow()))


def _quarantine_rows(failed: pa.Table) -> list[dict[str, Any]]:
    return failed.select(QUARANTINE_COLUMNS).to_pylist()


def redacted_rows(rows: DataFrame, redactor: Redactor) -> DataFrame:
    """Return the redacted rows, with the columns of `FLATTENED`; rows that cannot be redacted get a `reason`."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return rows.mapInArrow(functools.partial(_redact_batches, redactor=redactor), from_arrow_schema(FLATTENED))


def _redact_batches(batches: Iterator[pa.RecordBatch], redactor: Redactor) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for first in range(0, batch.num_rows, WORKER_ROWS):
            rows = pa.Table.from_batches([batch.slice(first, WORKER_ROWS)]).to_pylist(maps_as_pydicts="lossy")
            redacted = pa.Table.from_pylist([_redacted_row(row, redactor) for row in rows], schema=FLATTENED)
            yield from redacted.to_batches()


def _redacted_row(row: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    if row["reason"] is not None:
        return {**row, "reason": redactor.text(row["reason"]), "raw": redactor.raw(row["raw"])}
    try:
        return redactor.row(row)
    except Exception as error:  # noqa: BLE001 - malformed content raises any error; its text may hold private data
        known = {name: row[name] for name in ("trace_id", "created_at", "trace_hour")}
        return {**known, "reason": f"redaction failed: {type(error).__name__}", "raw": ""}


@contextmanager
def _computed_once(frame: DataFrame) -> Iterator[None]:
    """Cache the rows within the block if the engine can; Databricks serverless compute cannot and recomputes them."""
    from pyspark.errors import PySparkException

    with suppress(PySparkException):
        frame.persist()
    try:
        yield
    finally:
        with suppress(PySparkException):
            frame.unpersist()
