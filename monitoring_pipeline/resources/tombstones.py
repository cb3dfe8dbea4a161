"""Tombstones: traces that were deleted on request. No write brings them back, even if the source or a run has them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar, cast

import pyarrow as pa

from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.tables import DELETED_TRACES
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from monitoring_pipeline.resources.lake import LakeResource

Rows = TypeVar("Rows", "DataFrame", "pa.Table")
# A trace may have been deleted from a later hour than its current one: MLflow only lowers a trace's start.
MOVED_AT_MOST = timedelta(days=1)


def trace_digest(trace_id: str) -> str:
    """Return the SHA-256 of a trace id, all that the lake keeps of a deleted trace. Ids are random: no way back."""
    return hashlib.sha256(trace_id.encode("utf-8", "surrogatepass")).hexdigest()


def deleted_digests(lake: LakeResource, window: Window) -> frozenset[str]:
    """Return the digests of the deleted traces that may start in `window`."""
    rows = lake.read_columns(DELETED_TRACES, around(window), "trace_digest")
    return frozenset(rows["trace_digest"].to_pylist())


def without_deleted(rows: Rows, digests: Collection[str]) -> Rows:
    """Return the rows without those of traces whose digest is in `digests`."""
    if not digests:
        return rows
    if isinstance(rows, pa.Table):
        arrow = cast("pa.Table", rows)
        is_kept = [trace_digest(trace_id) not in digests for trace_id in arrow["trace_id"].to_pylist()]
        return arrow.filter(pa.array(is_kept, pa.bool_()))
    from pyspark.sql import functions as F

    is_deleted = F.sha2("trace_id", 256).isin(*digests)
    return cast("Rows", rows.where(~is_deleted))


def complete(lake: LakeResource, window: Window, digests: Collection[str], completed_at: datetime | None) -> None:
    """Mark the requests of `window` with these digests as complete; with None, as not complete."""
    rows = lake.read_columns(DELETED_TRACES, window, *DELETED_TRACES.columns.names).to_pylist()
    marked = [{**row, "completed_at": completed_at} for row in rows if row["trace_digest"] in digests]
    lake.upsert(DELETED_TRACES, from_dicts(DELETED_TRACES, marked))


def around(window: Window) -> Window:
    """Return the window of the requests for traces that may start in `window`."""
    return Window(window.start, window.end + MOVED_AT_MOST)
