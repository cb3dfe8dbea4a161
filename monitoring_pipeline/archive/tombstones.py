"""Tombstones: the traces that were deleted on request. Archiving leaves them out, even if the source still has them."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import DELETED_TRACES
from monitoring_pipeline.windows import Window

# A trace may have been deleted from a later hour than the one it has now: MLflow lowers a start, never raises it.
MOVED_AT_MOST = timedelta(days=1)


def trace_digest(trace_id: str) -> str:
    """What the lake keeps of a deleted trace: the SHA-256 of its id. Ids are random: it leads back to none."""
    return hashlib.sha256(trace_id.encode("utf-8", "surrogatepass")).hexdigest()


def deleted_digests(lake: LakeResource, window: Window) -> frozenset[str]:
    """The digests of the deleted traces that may start in `window`."""
    around = Window(window.start, window.end + MOVED_AT_MOST)
    return frozenset(lake.read_columns(DELETED_TRACES, around, "trace_digest")["trace_digest"].to_pylist())
