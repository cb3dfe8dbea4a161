"""Archives the traces of a window from their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from monitoring_pipeline.archive.account import keep_account, lacking
from monitoring_pipeline.archive.frames import archive_frames
from monitoring_pipeline.archive.merging import ArchiveCounts, archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources.base import NOTHING, HourCounts, Source, TraceFrames
from monitoring_pipeline.sources.opening import open_source
from monitoring_pipeline.traces.redaction import Redactor, redactor
from monitoring_pipeline.windows import Window


def archive_window(
    settings: ArchiveSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    window: Window,
    on_progress: Callable[[int], None] = lambda read: None,
) -> ArchiveCounts:
    """Archive the source's traces that start in `window`, and update the account of its whole hours.

    The source is counted before it is read, and the account is written after the archive: a trace that arrives in
    between, a crash or a missing trace leaves its hour due. `on_progress` is called with the number of traces read so
    far.

    Raises:
        TrackingError: the store or table cannot be used.
    """
    with open_source(settings, tracking, lake.spark) as source:
        counted_at = datetime.now(UTC)
        counted = source.counts(window)
        counts = _merge(source, lake, window, on_progress, redactor(settings.redact))
        if whole := window.inner_hours():
            counts.lacking = _still_lacking(source, lake, whole, counted)
            keep_account(lake, whole, counted, counted_at, leaving_out=counts.lacking)
    return counts


def _merge(
    source: Source,
    lake: LakeResource,
    window: Window,
    on_progress: Callable[[int], None],
    redact: Redactor | None,
) -> ArchiveCounts:
    traces, names = source.read(window), source.experiment_names
    if isinstance(traces, TraceFrames):
        return archive_frames(lake, traces, names, on_progress, redact, source.moved)
    return archive(lake, window, traces, names, on_progress, redact, source.moved)


def _still_lacking(
    source: Source, lake: LakeResource, window: Window, counted: Mapping[datetime, HourCounts]
) -> dict[datetime, int]:
    """The number of missing traces by hour, without traces that left the source's hour since it was `counted`.

    If traces are missing, the source is counted again: they may have been deleted or moved to another hour meanwhile.
    """
    short = lacking(lake, window, counted)
    if not short:
        return {}
    again = source.counts(window)
    return lacking(lake, window, {hour: min(counted[hour], again.get(hour, NOTHING), key=_traces) for hour in short})


def _traces(counts: HourCounts) -> int:
    return counts.traces
