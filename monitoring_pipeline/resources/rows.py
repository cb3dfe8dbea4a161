"""Rows of a table: schema, identity, and predicates to find them in Delta."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.tables import Table
from monitoring_pipeline.windows import Window, to_microseconds

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

CLOCK_SKEW = timedelta(hours=1)  # between the machines that write and read a file


def conform(table: Table, rows: DataFrame | pa.Table) -> pa.Table:
    """Return `rows` with exactly the table's columns, order and types, adding the column `date` if missing.

    Raises:
        LakeError: a column is missing, is not in the table, or cannot be cast.
    """
    arrow: Any = rows if isinstance(rows, pa.Table) else rows.toArrow()
    if "date" not in arrow.column_names:
        arrow = arrow.append_column("date", arrow[table.hour].cast(pa.date32()))
    check_columns(table, arrow.column_names)
    try:
        return arrow.select(table.schema.names).cast(table.schema)
    except (pa.ArrowException, ValueError) as error:
        raise LakeError(f"{table.name}: {error}") from error


def check_columns(table: Table, columns: list[str]) -> None:
    """Raise LakeError unless the columns are exactly the table's, in any order."""
    missing, unknown = set(table.schema.names) - set(columns), set(columns) - set(table.schema.names)
    if missing or unknown:
        raise LakeError(f"{table.name}: columns missing: {sorted(missing)}, not in the table: {sorted(unknown)}")


def from_dicts(table: Table, rows: list[dict[str, Any]]) -> pa.Table:
    """Return `rows` with the table's types, without the column `date`, which `conform` adds."""
    return pa.Table.from_pylist(rows, schema=table.columns)


def identity_columns(table: Table) -> list[str]:
    """Return the columns of stored rows that `differences` needs."""
    return sorted({table.hour, *table.key, *table.content})


def differences(table: Table, present: pa.Table, new: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows of `new` whose key is not in `present`, and the rows whose content differs from `present`.

    If rows of `new` share a key, the last one counts.
    """
    known = dict(zip(_keys(present, table), _tuples(present, table.content), strict=True))
    last = dict(zip(_keys(new, table), enumerate(_tuples(new, table.content)), strict=True))
    added = [index for key, (index, _) in last.items() if key not in known]
    changed = [index for key, (index, value) in last.items() if key in known and known[key] != value]
    return _only(new, added), _only(new, changed)


def hours_of(table: Table, rows: pa.Table) -> Window:
    """Return the smallest window of whole hours that contains the rows (at least one)."""
    return Window.covering(pc.unique(rows[table.hour]).to_pylist())


def last_of_each_key(table: Table, rows: pa.Table) -> pa.Table:
    """Return the last row of each key."""
    return differences(table, table.schema.empty_table(), rows)[0]


def within(table: Table, window: Window, of: str = "") -> str:
    """Return an SQL predicate for rows whose hour is in `window`; `of` is a prefix for column names."""
    days, start, end = window.days(), _utc_text(window.start), _utc_text(window.end)
    date, hour = f"{of}date", f"{of}{table.hour}"
    return f"{date} >= '{days[0]}' AND {date} <= '{days[-1]}' AND {hour} >= '{start}' AND {hour} < '{end}'"


def in_window(table: Table, window: Window) -> Column:
    """Return `within` as a Spark condition."""
    from pyspark.sql import functions as F

    days, hour = window.days(), F.col(table.hour)
    return F.col("date").between(days[0], days[-1]) & (hour >= timestamp(window.start)) & (hour < timestamp(window.end))


def timestamp(moment: datetime) -> Column:
    """Return the time as a Spark literal."""
    # F.lit(moment) would request the server's preferred timestamp type each time.
    from pyspark.sql import functions as F

    return F.timestamp_micros(F.lit(to_microseconds(moment)))


def having_keys_of(table: Table, rows: pa.Table) -> str:
    """Return an SQL predicate for stored rows with the hours and keys of `rows`.

    Keys are trace content, so the SQL contains their hashes. With a predicate, delta-rs rewrites only the files with
    such a row; a merge from a stream of rows would hold all of them in memory.
    """
    columns = [column for column in table.key if column != table.hour]
    hashes = "".join(f", coalesce(encode(sha256({column}), 'hex'), '-')" for column in columns)
    hours = [_utc_text(hour) for hour in rows[table.hour].to_pylist()]
    identities = [hour + "".join(map(_hash, key)) for hour, key in zip(hours, _tuples(rows, columns), strict=True)]
    return (
        f"date IN ({_quoted(dates(rows))}) AND {table.hour} IN ({_quoted(sorted(set(hours)))}) "
        f"AND concat(cast({table.hour} AS varchar){hashes}) IN ({_quoted(identities)})"
    )


def having(table: Table, window: Window, column: str, values: Iterable[str]) -> str:
    """Return an SQL predicate for stored rows in `window` whose `column` is one of `values`; it contains hashes."""
    return f"{within(table, window)} AND encode(sha256({column}), 'hex') IN ({_quoted(map(_hash, values))})"


def dates(rows: pa.Table) -> list[date]:
    """Return the distinct dates of the rows, in order."""
    return sorted(pc.unique(rows["date"]).to_pylist())


def _utc_text(moment: datetime) -> str:
    """A time as delta-rs writes and reads it."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _hash(text: str | None) -> str:
    return "-" if text is None else hashlib.sha256(text.encode()).hexdigest()


def _quoted(values: Iterable[object]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def _only(rows: pa.Table, indices: list[int]) -> pa.Table:
    if len(indices) == rows.num_rows:
        return rows
    wanted = np.zeros(rows.num_rows, bool)
    wanted[indices] = True
    return rows.filter(pa.array(wanted))


def _keys(rows: pa.Table | pa.RecordBatch, table: Table) -> list[tuple[Any, ...]]:
    """The identity of each row: its hour (in microseconds) and key."""
    hours = rows.column(table.hour).cast(pa.int64()).to_pylist()  # 20 times faster than datetimes
    return list(zip(hours, _tuples(rows, table.key), strict=True))


def _tuples(rows: pa.Table | pa.RecordBatch, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    if not columns:
        return [()] * rows.num_rows
    return list(zip(*(rows.column(column).to_pylist() for column in columns), strict=True))
