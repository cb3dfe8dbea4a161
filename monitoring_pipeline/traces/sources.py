"""Where traces come from: each source, by its name in the settings, into the same archive."""

from __future__ import annotations

import functools
from collections.abc import Callable

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.traces.archive import ArchiveCounts, archive
from monitoring_pipeline.traces.delta_source import archived_traces
from monitoring_pipeline.traces.in_engine import archive_frame
from monitoring_pipeline.traces.otel_source import otel_traces
from monitoring_pipeline.windows import Window

TABLES_OF_TRACES = {"delta": archived_traces, "otel": otel_traces}


def archive_window(
    source: ArchiveSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    window: Window,
    on_progress: Callable[[int], None] = lambda read: None,
) -> ArchiveCounts:
    """Bring the traces of the source that start in `window` into the archive; `on_progress` as for `archive`.

    Raises:
        TrackingError: the store or table cannot be used.
    """
    if source.source == "mlflow-sql":
        from monitoring_pipeline.traces.mlflow_sql_source import experiment_names, opened, read_traces

        with opened(source.location or tracking.tracking_uri) as database:
            names = experiment_names(database, tracking.experiments)
            traces = read_traces(database, list(names), window, tracking.tracking_uri)
            return archive(lake, window, traces, names, on_progress)
    names = tracking.experiment_names()
    if source.location and source.source in TABLES_OF_TRACES:
        traces = TABLES_OF_TRACES[source.source]
        frame = functools.partial(traces, lake.spark, source.location, names, bool(tracking.experiments))
        return archive_frame(lake, window, frame, on_progress)
    return archive(lake, window, tracking.traces(window), names, on_progress)
