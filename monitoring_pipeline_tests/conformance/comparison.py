"""The results of two engines side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TOLERANCE = 1e-9
# When and by which run something was made, and how long that took.
OF_THE_RUN = {"created_at", "assessed_at", "written_at", "dagster_run_id"}
TIMED_RESULTS = "assessments.parquet"


@dataclass(frozen=True)
class Compared:
    """How many results of a kind (tables, transformations, operations) and rows were equal, and what was not."""

    results: int
    rows: int
    differences: list[str]


def compare(one: Path, other: Path, kind: str) -> Compared:
    """Compare all results of a kind in the folders of two engines, row by row, in any order of rows."""
    names = sorted(file.name for file in (one / kind).iterdir())
    differences = [f"{kind}: {names} and others"] if names != sorted(f.name for f in (other / kind).iterdir()) else []
    rows = 0
    for name in names:
        left, right = (_comparable(folder / kind / name) for folder in (one, other))
        rows += len(left)
        if len(left) != len(right):
            differences.append(f"{name}: {len(left)} rows and {len(right)}")
        differences += [
            f"{name}, row {index}: {a} and {b}"
            for index, (a, b) in enumerate(zip(left, right, strict=False))
            if not _equal(a, b)
        ][:3]
    return Compared(len(names), rows, differences)


def _comparable(file: Path) -> list[dict[str, Any]]:
    ignored = OF_THE_RUN | ({"duration_ms"} if file.name == TIMED_RESULTS else set())
    rows = pq.read_table(file)
    kept = rows.select([name for name in rows.column_names if name not in ignored])
    return sorted((_plain(row) for row in kept.to_pylist(maps_as_pydicts="strict")), key=_order)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in sorted(value)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _order(row: dict[str, Any]) -> str:
    """By all that is no floating-point number: those may differ in their last digits."""
    return repr([value for value in row.values() if not isinstance(value, float)])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (one != one and other != other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
