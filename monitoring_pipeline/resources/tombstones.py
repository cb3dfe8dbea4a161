"""Tombstones: traces that were deleted on request. No write brings them back, even if the source or a run has them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from monitoring_pipeline.tables import DELETED_TRACES
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from monitoring_pipeline.resources.lake import LakeResource

# A trace may have been deleted from a later hour than its current one: MLflow only lowers a trace's start.
MOVED_AT_MOST = timedelta(days=1)


def trace_digest(trace_id: str) -> str:
    """Return the SHA-256 of a trace id, all that the lake keeps of a deleted trace. Ids are random: no way back."""
    return hashlib.sha256(trace_id.encode("utf-8", "surrogatepass")).hexdigest()


def deleted_digests(lake: LakeResource, window: Window) -> frozenset[str]:
    """Return the digests of the deleted traces that may start in `window`."""
    rows = lake.read_columns(DELETED_TRACES, _around(window), "trace_digest")
    return frozenset(rows["trace_digest"].to_pylist())


def without_deleted(rows: DataFrame | pa.Table, digests: Collection[str]) -> DataFrame | pa.Table:
    """Return the rows without those of traces whose digest is in `digests`."""
    if not digests:
        return rows
    if isinstance(rows, pa.Table):
        arrow = cast("pa.Table", rows)
        is_kept = [trace_digest(trace_id) not in digests for trace_id in arrow["trace_id"].to_pylist()]
        return arrow.filter(pa.array(is_kept, pa.bool_()))
    from pyspark.sql import functions as F

    is_deleted = F.sha2("trace_id", 256).isin(*digests)
    return rows.where(~is_deleted)


def reopened(lake: LakeResource, window: Window, digests: Collection[str]) -> pa.Table:
    """Return the rows of `deleted_traces` with these digests as rows of requests that are not complete."""
    names = [name for name in DELETED_TRACES.schema.names if name != "date"]
    rows = lake.read_columns(DELETED_TRACES, _around(window), *names).to_pylist()
    open_again = [{**row, "completed_at": None} for row in rows if row["trace_digest"] in digests]
    return pa.Table.from_pylist(open_again, schema=pa.schema([DELETED_TRACES.schema.field(name) for name in names]))


def _around(window: Window) -> Window:
    return Window(window.start, window.end + MOVED_AT_MOST)
