"""The tables of a lake as Parquet files: python -m monitoring_pipeline_tests.conformance.dump CONFIG FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from monitoring_pipeline.definitions import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline.tables import TABLES


def dump_tables(lake: LakeResource, folder: Path) -> None:
    """Write `tables`, a file for each table, into the folder."""
    for table in TABLES:
        save(folder / "tables" / f"{table.name}.parquet", lake.read(table).toArrow())


def save(file: Path, rows: pa.Table) -> None:
    """Write the rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, file)


if __name__ == "__main__":
    dump_tables(build_resources(load_settings(Path(sys.argv[1])))["lake"], Path(sys.argv[2]))
