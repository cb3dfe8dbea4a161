"""Where traces come from: each source, by its name in the settings, into the same archive."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from monitoring_pipeline.archive.account import keep_account, lacking
from monitoring_pipeline.archive.frames import archive_frame
from monitoring_pipeline.archive.merging import ArchiveCounts, archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources.base import NOTHING, HourCounts, UncountableError
from monitoring_pipeline.sources.counts import source_counts
from monitoring_pipeline.sources.delta import archived_traces
from monitoring_pipeline.sources.mlflow import read_moved
from monitoring_pipeline.sources.otel import otel_traces
from monitoring_pipeline.traces.redaction import redactor
from monitoring_pipeline.windows import Window

TABLES_OF_TRACES = {"delta": archived_traces, "otel": otel_traces}

log = logging.getLogger(__name__)


def archive_window(
    source: ArchiveSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    window: Window,
    on_progress: Callable[[int], None] = lambda read: None,
) -> ArchiveCounts:
    """Bring the traces of the source that start in `window` into the archive, and keep account of its whole hours.

    The source is counted before it is read and the account written after the archive was committed: whatever comes in
    between, or a crash, leaves an hour due, and so does a trace that is lacking. `on_progress` as for `archive`.

    Raises:
        TrackingError: the store or table cannot be used.
    """
    counted_at = datetime.now(UTC)
    try:
        counted = source_counts(source, tracking, lake.spark, window)
    except UncountableError as error:
        log.warning("no account of what is archived: %s", error)
        counted = None
    counts = _read(source, tracking, lake, window, on_progress)
    if counted is not None and (whole := window.inner_hours()):
        counts.lacking = _still_lacking(source, tracking, lake, whole, counted)
        keep_account(lake, whole, counted, counted_at, leaving_out=counts.lacking)
    return counts


def _still_lacking(
    source: ArchiveSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    window: Window,
    counted: Mapping[datetime, HourCounts],
) -> dict[datetime, int]:
    """How many traces each hour lacks, of those that the source had when they were `counted`, and has now.

    It is asked again only where some are lacking: they may have been deleted, or moved to another hour, meanwhile.
    """
    short = lacking(lake, window, counted)
    if not short:
        return {}
    again = source_counts(source, tracking, lake.spark, window)
    return lacking(lake, window, {hour: min(counted[hour], again.get(hour, NOTHING), key=_traces) for hour in short})


def _traces(counts: HourCounts) -> int:
    return counts.traces


def _read(
    source: ArchiveSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    window: Window,
    on_progress: Callable[[int], None],
) -> ArchiveCounts:
    redact = redactor(source.redact)
    if source.source == "mlflow-sql":
        from monitoring_pipeline.sources import mlflow_sql

        with mlflow_sql.opened(source.location or tracking.tracking_uri) as database:
            names = mlflow_sql.experiment_names(database, tracking.experiments)
            traces = mlflow_sql.read_traces(database, list(names), window, tracking.tracking_uri)
            moved = functools.partial(mlflow_sql.read_moved, database, tracking_uri=tracking.tracking_uri)
            return archive(lake, window, traces, names, on_progress, redact, moved)
    names = tracking.experiment_names()
    if source.location and source.source in TABLES_OF_TRACES:
        traces = TABLES_OF_TRACES[source.source]
        frame = functools.partial(traces, lake.spark, source.location, names, bool(tracking.experiments))
        return archive_frame(lake, window, frame, on_progress, redact)
    moved = functools.partial(read_moved, tracking.client)
    return archive(lake, window, tracking.traces(window), names, on_progress, redact, moved)
