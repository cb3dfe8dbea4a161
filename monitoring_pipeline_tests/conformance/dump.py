"""Writes tables of a lake to Parquet files.

python -m monitoring_pipeline_tests.conformance.dump CONFIG FOLDER TABLE…
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline.tables import AGENT_TRACES, TABLES, Table
from monitoring_pipeline.windows import Window


def dump_tables(
    lake: LakeResource, folder: Path, parts: Iterable[Window | None] = (None,), tables: Iterable[Table] = TABLES
) -> None:
    """Write each table into a folder below `tables`: one file, and for the archive one file for each of `parts`."""
    for table in tables:
        for number, part in enumerate(parts if table is AGENT_TRACES else [None]):
            save(folder / "tables" / table.name / f"{number}.parquet", lake.read(table, part).toArrow())


def save(file: Path, rows: pa.Table) -> None:
    """Write the rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, file)


if __name__ == "__main__":
    named = [table for table in TABLES if table.name in sys.argv[3:]]
    dump_tables(build_resources(load_settings(Path(sys.argv[1])))["lake"], Path(sys.argv[2]), tables=named)
