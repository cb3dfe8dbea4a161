"""Tombstones: traces that were deleted on request. The archive leaves them out even if the source still has them."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import DELETED_TRACES
from monitoring_pipeline.windows import Window

# A trace may have been deleted from a later hour than its current one: MLflow only lowers a trace's start.
MOVED_AT_MOST = timedelta(days=1)


def trace_digest(trace_id: str) -> str:
    """Return the SHA-256 of a trace id, all that the lake keeps of a deleted trace. Ids are random: no way back."""
    return hashlib.sha256(trace_id.encode("utf-8", "surrogatepass")).hexdigest()


def deleted_digests(lake: LakeResource, window: Window) -> frozenset[str]:
    """Return the digests of the deleted traces that may start in `window`."""
    around = Window(window.start, window.end + MOVED_AT_MOST)
    return frozenset(lake.read_columns(DELETED_TRACES, around, "trace_digest")["trace_digest"].to_pylist())
