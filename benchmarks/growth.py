"""Archiving and measuring one hour in a lake of two years, against the same in a lake of a week."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks.lakes import day_of_traces
from benchmarks.measuring import Result, no_more, side_by_side
from benchmarks.stores import EXPERIMENT, START, fill_store

SHORT_DAYS, LONG_DAYS, SMALL_LONG_DAYS = 7, 730, 180
TRACES_PER_DAY = 20
STORE_TRACES = 7 * 24 * 20
HOUR = START + timedelta(days=3, hours=12)


def subject(folder: Path, small: bool) -> Iterator[Result]:
    """The older days have a file each; the hour is archived, measured and profiled."""
    days, rounds = (SMALL_LONG_DAYS, 1) if small else (LONG_DAYS, 5)
    address = fill_store(folder / "store", STORE_TRACES)
    for name, count in (("long", days), ("short", SHORT_DAYS)):
        make_lake(folder / name, START, count)
    ours, short = side_by_side(hour_in_long, hour_in_short, address, str(folder), rounds=rounds)
    work = f"one hour in a lake of {days:,} days, against in one of {SHORT_DAYS} days"
    yield no_more(work, ours, short, 1.15, "cpu_s", rounds)


def make_lake(folder: Path, end: datetime, days: int) -> None:
    """A lake with `days` days of traces, a file each, and the tables of their performance."""
    import pyarrow as pa

    from monitoring_pipeline.derivations import PERFORMANCE_OF_HOURS, PERFORMANCE_OF_TRACES, PROFILE_OF_SPANS
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.spark import SparkResource
    from monitoring_pipeline.tables import AGENT_TRACES
    from monitoring_pipeline.windows import Window

    lake = LakeResource(location=str(folder), spark=SparkResource())
    random = np.random.default_rng(7)
    first = end - timedelta(days=days)
    for start in range(0, days, 30):  # a commit a month
        some = range(start, min(start + 30, days))
        rows = [day_of_traces(random, TRACES_PER_DAY, first + timedelta(days=day), f"{day:04x}") for day in some]
        lake.insert(AGENT_TRACES, pa.concat_tables(rows))
    for derivation in (PERFORMANCE_OF_TRACES, PERFORMANCE_OF_HOURS, PROFILE_OF_SPANS):
        derivation.derive(lake, Window(first, end))


def hour_in_long(address: str, folder: str) -> Generator[None, None, list[int]]:
    return _hour(address, f"{folder}/long")


def hour_in_short(address: str, folder: str) -> Generator[None, None, list[int]]:
    return _hour(address, f"{folder}/short")


def _hour(address: str, made: str) -> Generator[None, None, list[int]]:
    from monitoring_pipeline.archive.window import archive_window
    from monitoring_pipeline.derivations import PERFORMANCE_OF_HOURS, PERFORMANCE_OF_TRACES, PROFILE_OF_SPANS
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.spark import SparkResource
    from monitoring_pipeline.resources.tracking import TrackingResource
    from monitoring_pipeline.settings import ArchiveSettings
    from monitoring_pipeline.windows import Window

    shutil.copytree(made, "lake")
    spark = SparkResource()
    tracking = TrackingResource(tracking_uri=address, experiments=[EXPERIMENT])
    window = Window(HOUR, HOUR + timedelta(hours=1))
    tables = (PERFORMANCE_OF_TRACES, PERFORMANCE_OF_HOURS, PROFILE_OF_SPANS)

    def hour(lake: LakeResource) -> None:
        archive_window(ArchiveSettings(source="mlflow-sql"), tracking, lake, window)
        for derivation in tables:
            derivation.derive(lake, window)

    hour(LakeResource(location="warm", spark=spark))
    lake = LakeResource(location="lake", spark=spark)
    yield
    hour(lake)
    yield
    return [lake.read(derivation.table, window).count() for derivation in tables]
