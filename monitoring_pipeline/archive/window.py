"""The traces of a window, from their source into the archive."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from monitoring_pipeline.archive.account import keep_account, lacking
from monitoring_pipeline.archive.frames import archive_frames
from monitoring_pipeline.archive.merging import ArchiveCounts, archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources.base import NOTHING, HourCounts, Source, TraceFrames, UncountableError
from monitoring_pipeline.sources.opening import open_source
from monitoring_pipeline.traces.redaction import Redactor, redactor
from monitoring_pipeline.windows import Window

log = logging.getLogger(__name__)


def archive_window(
    settings: ArchiveSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    window: Window,
    on_progress: Callable[[int], None] = lambda read: None,
) -> ArchiveCounts:
    """Bring the traces of the source that start in `window` into the archive, and keep account of its whole hours.

    The source is counted before it is read, and the account is written after the archive. A trace that arrives in
    between, a crash, or a trace that is lacking leaves its hour due. `on_progress` is called with the number of traces
    read so far.

    Raises:
        TrackingError: the store or table cannot be used.
    """
    with open_source(settings, tracking, lake.spark) as source:
        counted_at = datetime.now(UTC)
        counted = _counts(source, window)
        counts = _merge(source, lake, window, on_progress, redactor(settings.redact))
        if counted is not None and (whole := window.inner_hours()):
            counts.lacking = _still_lacking(source, lake, whole, counted)
            keep_account(lake, whole, counted, counted_at, leaving_out=counts.lacking)
    return counts


def _counts(source: Source, window: Window) -> dict[datetime, HourCounts] | None:
    try:
        return source.counts(window)
    except UncountableError as error:
        log.warning("no account is kept of what is archived: %s", error)
        return None


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
    """How many traces each hour lacks, of those that the source had when they were `counted` and still has.

    The source is counted again only if some are lacking: meanwhile they may have been deleted or have moved to another
    hour.
    """
    short = lacking(lake, window, counted)
    if not short:
        return {}
    again = source.counts(window)
    return lacking(lake, window, {hour: min(counted[hour], again.get(hour, NOTHING), key=_traces) for hour in short})


def _traces(counts: HourCounts) -> int:
    return counts.traces
