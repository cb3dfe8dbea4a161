"""Where traces come from: each source, by its name in the settings, into the same archive."""

from __future__ import annotations

from collections.abc import Callable

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.traces.archive import ArchiveCounts, archive
from monitoring_pipeline.windows import Window


def archive_window(
    source: ArchiveSettings,
    tracking: TrackingResource,
    lake: LakeResource,
    window: Window,
    on_progress: Callable[[int], None] = lambda read: None,
) -> ArchiveCounts:
    """Bring the traces of the source that start in `window` into the archive; `on_progress` as for `archive`.

    Raises:
        TrackingError: the store cannot be used.
    """
    names = tracking.experiment_names()
    return archive(lake, window, tracking.traces(window), names, on_progress)
