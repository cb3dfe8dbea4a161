"""Archives all traces of the configured store: python -m monitoring_pipeline_tests.conformance.archive CONFIG."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline.windows import Window

DAYS = 31

if __name__ == "__main__":
    settings = load_settings(Path(sys.argv[1]))
    resources = build_resources(settings)
    window = Window(settings.archive.start, settings.archive.start + timedelta(days=DAYS))
    print(archive_window(settings.archive, resources["tracking"], resources["lake"], window))
