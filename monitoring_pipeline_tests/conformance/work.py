"""Runs all of an engine's work once: python -m monitoring_pipeline_tests.conformance.work CONFIG FOLDER.

Runs the whole chain over the configured store, every transformation of the resulting lake, and every operation on an
empty lake. Writes a Parquet file for each table and result into FOLDER. With MONITORING_LONG_TESTS=1 the window is 48
hours long, otherwise 30, and no report is written: its data is one of the transformations.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import dagster as dg

from monitoring_pipeline.keys import DAILY_REPORT, DAILY_REPORT_KEY, MONITORING, NO_PREFIX, partition_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import execute, failures, start_instance
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import Settings, load_settings
from monitoring_pipeline.windows import HOUR, Window, parts
from monitoring_pipeline_tests.conformance.dump import dump_tables, save
from monitoring_pipeline_tests.conformance.operations import all_operations
from monitoring_pipeline_tests.conformance.transformations import all_transformations

LONG = "MONITORING_LONG_TESTS" in os.environ
HOURS = 48 if LONG else 30  # a day and part of the next
PART_HOURS = 6 if LONG else HOURS  # of the archive in one file


def main(config: Path, folder: Path) -> None:
    """Run everything."""
    settings = load_settings(config)
    start = settings.archive.start
    window = Window(start, start + timedelta(hours=HOURS))
    lake: LakeResource = build_resources(settings)["lake"]
    began = time.perf_counter()

    def report(what: str) -> None:
        print(f"{time.perf_counter() - began:7.1f} s  {what}", flush=True)

    run_chain(settings, window, folder, report)
    dump_tables(lake, folder, parts(window, PART_HOURS))
    for name, transform in all_transformations(lake, load_scorers(settings.scorers), window):
        save(folder / "transformations" / f"{name}.parquet", transform())
        report(name)
    empty = LakeResource(location=f"{settings.lake.location}_operations", spark=lake.spark)
    for name, operate in all_operations():
        save(folder / "operations" / f"{name}.parquet", operate(empty))
        report(name)


def run_chain(settings: Settings, window: Window, folder: Path, say: Callable[[str], None]) -> None:
    """Materialize all hourly assets of the window, the agreement of its days and, if LONG, the last day's report."""
    definitions, instance, days = build_definitions(settings), start_instance(folder, NO_PREFIX), window.days()
    hours = (partition_key(window.start), partition_key(window.end - HOUR))
    agreement, report = [dg.AssetKey("scorer_agreement")], [dg.AssetKey(DAILY_REPORT_KEY)]
    for job, selection, keys in (
        (MONITORING, None, hours),
        (DAILY_REPORT, agreement, (f"{days[0]}", f"{days[-1]}")),
        *([(DAILY_REPORT, report, (f"{days[-1]}", f"{days[-1]}"))] if LONG else []),
    ):
        result = execute(definitions, NO_PREFIX, job, selection, keys, instance, lambda event: say(str(event)))
        if not result.success:
            raise SystemExit(f"the chain failed: {failures(result)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
