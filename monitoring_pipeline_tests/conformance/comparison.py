"""Compares the results of two engines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TOLERANCE = 1e-9
# Columns that differ between runs: when and by which run a row was written.
OF_THE_RUN = {"created_at", "archived_at", "assessed_at", "superseded_at", "written_at", "dagster_run_id"}
TIMED_RESULTS = "assessments"
ROWS_AT_A_TIME = 5000  # as Python objects


@dataclass(frozen=True)
class Compared:
    """The number of compared results of a kind (tables, transformations, operations) and rows, and the differences."""

    results: int
    rows: int
    differences: list[str]


def compare(one: Path, other: Path, kind: str) -> Compared:
    """Compare all results of a kind in the folders of two engines, row by row; the order of rows does not matter."""
    files = _files(one / kind)
    differences = [] if files == _files(other / kind) else [f"{kind}: {files} and {_files(other / kind)}"]
    rows = 0
    for file in files:
        left, right = (_in_order(folder / kind / file) for folder in (one, other))
        rows += left.num_rows
        if left.num_rows != right.num_rows:
            differences.append(f"{file}: {left.num_rows} rows and {right.num_rows}")
        differences += [f"{file}: {a} and {b}" for a, b in _pairs(left, right) if not _equal(a, b)][:3]
    return Compared(len({file.parts[0] for file in files}), rows, differences)


def _files(folder: Path) -> list[Path]:
    return sorted(file.relative_to(folder) for file in folder.rglob("*.parquet"))


def _in_order(file: Path) -> pa.Table:
    """The rows, sorted by floating-point columns last, because those may differ in their last digits."""
    ignored = OF_THE_RUN | ({"duration_ms"} if TIMED_RESULTS in file.parts else set())
    rows = pq.read_table(file)
    rows = rows.select([name for name in rows.column_names if name not in ignored])
    flat = [column for column in rows.schema if not pa.types.is_nested(column.type)]
    keys = sorted(flat, key=lambda column: pa.types.is_floating(column.type))
    return rows.sort_by([(column.name, "ascending") for column in keys]) if keys else rows


def _pairs(left: pa.Table, right: pa.Table) -> Iterator[tuple[Any, Any]]:
    for start in range(0, left.num_rows, ROWS_AT_A_TIME):
        yield from zip(*(_plain_rows(rows.slice(start, ROWS_AT_A_TIME)) for rows in (left, right)), strict=False)


def _plain_rows(rows: pa.Table) -> list[Any]:
    return [_plain(row) for row in rows.to_pylist(maps_as_pydicts="strict")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in sorted(value)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (one != one and other != other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
