"""Tombstones: traces that were deleted on request. No write brings them back, even if the source or a run has them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.tables import DELETED_TRACES, Table
from monitoring_pipeline.windows import SESSION_SPAN, Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from monitoring_pipeline.resources.lake import LakeResource

Rows = TypeVar("Rows", "DataFrame", "pa.Table")
# A trace may have been deleted from a later hour than its current one: MLflow only lowers a trace's start.
MOVED_AT_MOST = timedelta(days=1)
OF_SESSION = "session_trace_ids"
DESCRIBED = {"trace_id", OF_SESSION}  # columns with the ids of the traces that a row is about


def trace_digest(trace_id: str) -> str:
    """Return the SHA-256 of a trace id, all that the lake keeps of a deleted trace. Ids are random: no way back."""
    return hashlib.sha256(trace_id.encode("utf-8", "surrogatepass")).hexdigest()


def deleted_digests(lake: LakeResource, table: Table, window: Window) -> frozenset[str]:
    """Return the digests of the deleted traces that rows of `table` in `window` may be about."""
    rows = lake.read_columns(DELETED_TRACES, around(table, window), "trace_digest")
    return frozenset(rows["trace_digest"].to_pylist())


def is_about(rows: pa.Table, digests: Collection[str]) -> pa.BooleanArray:
    """Return for each row whether it is about a trace with one of the digests, as its own or as one of its session."""
    ids = rows["trace_id"].to_pylist()
    others = rows[OF_SESSION].to_pylist() if OF_SESSION in rows.column_names else [None] * len(ids)
    return pa.array(
        [
            any(trace_digest(each) in digests for each in (trace_id, *(of_session or ())))
            for trace_id, of_session in zip(ids, others, strict=True)
        ],
        pa.bool_(),
    )


def without_deleted(rows: Rows, digests: Collection[str]) -> Rows:
    """Return the rows that are not about a trace whose digest is in `digests`."""
    if not digests:
        return rows
    if isinstance(rows, pa.Table):
        arrow = cast("pa.Table", rows)
        return arrow.filter(pc.invert(is_about(arrow, digests)))
    from pyspark.sql import functions as F

    is_deleted = F.sha2("trace_id", 256).isin(*digests)
    if OF_SESSION in rows.columns:
        of_session = F.exists(OF_SESSION, lambda trace_id: F.sha2(trace_id, 256).isin(*digests))
        is_deleted = is_deleted | F.coalesce(of_session, F.lit(False))
    return cast("Rows", rows.where(~is_deleted))


def complete(lake: LakeResource, window: Window, digests: Collection[str], completed_at: datetime | None) -> None:
    """Mark the requests of `window` with these digests as complete; with None, as not complete."""
    rows = lake.read_columns(DELETED_TRACES, window, *DELETED_TRACES.columns.names).to_pylist()
    marked = [{**row, "completed_at": completed_at} for row in rows if row["trace_digest"] in digests]
    lake.upsert(DELETED_TRACES, from_dicts(DELETED_TRACES, marked))


def around(table: Table, window: Window) -> Window:
    """Return the window of the requests for traces that rows of `table` in `window` may be about."""
    later = MOVED_AT_MOST + (SESSION_SPAN if OF_SESSION in table.schema.names else timedelta(0))
    return Window(window.start, window.end + later)
