"""Runs all of an engine's work once: python -m monitoring_pipeline_tests.conformance.work CONFIG FOLDER.

Runs the whole chain over the configured store, every transformation of the resulting lake, and every operation on an
empty lake. Writes a Parquet file for each table and result into FOLDER. With MONITORING_LONG_TESTS=1 the window is 48
hours long, otherwise 30.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import run_chain, start_instance
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline.windows import Window, parts
from monitoring_pipeline_tests.conformance.dump import dump_tables, save
from monitoring_pipeline_tests.conformance.operations import all_operations
from monitoring_pipeline_tests.conformance.transformations import all_transformations

HOURS = 48 if "MONITORING_LONG_TESTS" in os.environ else 30  # a day, and a part of the next
PART_HOURS = 6  # of the archive at a time


def main(config: Path, folder: Path) -> None:
    """Run everything."""
    settings = load_settings(config)
    start = settings.archive.start
    window = Window(start, start + timedelta(hours=HOURS))
    lake: LakeResource = build_resources(settings)["lake"]
    began = time.perf_counter()

    def said(what: str) -> None:
        print(f"{time.perf_counter() - began:7.1f} s  {what}", flush=True)

    result = run_chain(
        build_definitions(settings), settings, window, None, start_instance(folder), lambda event: said(str(event))
    )
    if not result.succeeded:
        raise SystemExit(f"the chain failed: {result}")
    dump_tables(lake, folder, parts(window, PART_HOURS))
    for name, transform in all_transformations(lake, load_scorers(settings.scorers), window):
        save(folder / "transformations" / f"{name}.parquet", transform())
        said(name)
    empty = LakeResource(location=f"{settings.lake.location}_operations", spark=lake.spark)
    for name, operate in all_operations():
        save(folder / "operations" / f"{name}.parquet", operate(empty))
        said(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
