"""The lake as folders of Delta tables under a path or an object store address; delta-rs writes, Spark reads."""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.dataset import FileSystemDataset, ParquetFileFormat
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from tenacity import stop_after_attempt

from monitoring_pipeline import __version__
from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.folders import make_private
from monitoring_pipeline.resources.delta_errors import VERSION, check_version, is_unsupported, lake_errors
from monitoring_pipeline.resources.rows import (
    CLOCK_SKEW,
    conform,
    dates,
    differences,
    having,
    having_keys_of,
    hours_of,
    identity_columns,
    in_window,
    within,
)
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.retries import retried
from monitoring_pipeline.tables import Table
from monitoring_pipeline.windows import Window, to_milliseconds

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable
    from pyspark.sql import DataFrame

COMMIT_ATTEMPTS = 20
SAIL_PATH = r"[\w!$&'()+,.:;=@/-]*"  # Sail 0.7.2 does not find tables under a path with any other character
DELTA_REFUSES = r"[%\\|^\[\]\x00-\x1f\x7f]"  # delta-rs 1.6.6 panics or writes elsewhere if a path contains one of these
T = TypeVar("T")
_opened: set[str] = set()  # paths of tables that this process has opened


@dataclass(frozen=True)
class DeltaFolders:
    """The tables under `location`, a folder or an address such as s3://bucket/path; methods as in LakeResource."""

    commit_rows: ClassVar = 2000  # a commit takes tens of milliseconds

    location: str
    spark: SparkResource

    def path(self, table: Table) -> str:
        return f"{self.location.rstrip('/')}/{table.name}"

    def version(self, table: Table) -> int:
        return self._open(table).version()

    def identity(self, table: Table) -> str | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        path = self.path(table)
        with lake_errors("open", path):
            try:
                return str(DeltaTable(path).metadata().id)
            except TableNotFoundError:
                return None

    def read(self, table: Table, window: Window | None, version: int | None) -> DataFrame:
        reader = self.spark.session.read.format("delta")
        if version is not None:
            _pin(self._open(table), self.path(table), version)
            reader = reader.option("versionAsOf", version)
        elif not self._is_ready(table):
            self._open(table)
        location = self.location if self.spark.remote else for_sail(self.location)
        rows = reader.load(f"{location.rstrip('/')}/{table.name}")
        return rows if window is None else rows.where(in_window(table, window))

    def read_columns(self, table: Table, window: Window, *columns: str) -> pa.Table:
        delta = self._open(table)
        with lake_errors("read", self.path(table)):
            return self._rows(delta, table, window).to_table(columns=list(columns))

    def read_written_since(self, table: Table, moment: datetime, *columns: str) -> pa.Table:
        delta = self._open(table)
        files = pa.table(delta.get_add_actions(flatten=True)).select(["path", "modification_time"]).to_pylist()
        since_ms = to_milliseconds(moment - CLOCK_SKEW)
        recent = {file["path"] for file in files if file["modification_time"] >= since_ms}
        with lake_errors("read", self.path(table)):
            dataset = delta.to_pyarrow_dataset(filesystem=_filesystem(self.path(table)))
            fragments = [fragment for fragment in dataset.get_fragments() if fragment.path in recent]
            return FileSystemDataset(fragments, dataset.schema, ParquetFileFormat()).to_table(columns=list(columns))

    def replace(self, table: Table, window: Window, rows: DataFrame | pa.Table) -> int:
        new = conform(table, rows)
        self._commit(table, lambda delta: _Write(new.to_reader(), within(table, window)))
        return new.num_rows

    def merge(self, table: Table, rows: DataFrame | pa.Table, window: Window | None, update: bool) -> int:
        new = conform(table, rows)
        if new.num_rows == 0:
            return 0
        touched = 0

        def write(delta: DeltaTable) -> _Write | None:
            nonlocal touched
            present = self._rows(delta, table, window or hours_of(table, new)).to_table(columns=identity_columns(table))
            added, changed = differences(table, present, new)
            changed = changed if update else changed.slice(0, 0)
            touched = added.num_rows + changed.num_rows
            if changed.num_rows:
                rows = pa.concat_tables([changed, added])
                return _Write(rows.to_reader(), having_keys_of(table, rows), guard=dates(rows))
            if added.num_rows:
                return _Write(added.to_reader(), None, guard=dates(added))
            return None

        self._commit(table, write)
        return touched

    def maintain(self, table: Table, retention_hours: int) -> dict[str, int]:
        compaction = self._retried(table, lambda delta: delta.optimize.compact())
        return {
            "files_added": compaction["numFilesAdded"],
            "files_removed": compaction["numFilesRemoved"],
            "files_deleted": self._retried(table, lambda delta: _vacuum(delta, retention_hours)),
        }

    def remove(self, table: Table, window: Window, column: str, values: Collection[str]) -> int:
        removed = 0

        def write(delta: DeltaTable) -> _Write | None:
            nonlocal removed
            present = self._rows(delta, table, window).to_table(columns=[column, "date"])
            gone = present.filter(pc.is_in(present[column], pa.array(values, pa.string())))
            removed = gone.num_rows
            predicate = having(table, window, column, pc.unique(gone[column]).to_pylist())
            return _Write(table.schema.empty_table().to_reader(), predicate, guard=dates(gone)) if removed else None

        self._commit(table, write)
        return removed

    def remove_before(self, table: Table, day: date) -> int:
        def remove(delta: DeltaTable) -> int:
            if not any(partition["date"] < day.isoformat() for partition in delta.partitions()):
                return 0  # a delete without rows would still create a commit
            # A condition on days alone removes whole files without rewriting any.
            return delta.delete(f"date < '{day.isoformat()}'")["num_deleted_rows"]

        return self._retried(table, remove)

    def purge(self, table: Table) -> None:
        self._retried(table, lambda delta: _vacuum(delta, retention_hours=0, is_checked=False))

    def _rows(self, delta: DeltaTable, table: Table, window: Window) -> Any:
        hour, days = pc.field(table.hour), window.days()
        dataset = delta.to_pyarrow_dataset(
            filesystem=_filesystem(self.path(table)),
            file_pruning_predicate=[("date", ">=", str(days[0])), ("date", "<=", str(days[-1]))],
        )
        return dataset.filter((hour >= window.start) & (hour < window.end))

    def _is_ready(self, table: Table) -> bool:
        """Whether this process has opened the table before, so that it exists and has all columns."""
        path = self.path(table)
        return path in _opened and ("://" in path or Path(path, "_delta_log").is_dir())

    def _open(self, table: Table) -> DeltaTable:
        """Open the Delta table; creates it if it does not exist."""
        from deltalake import CommitProperties, DeltaTable
        from deltalake.exceptions import CommitFailedError, TableNotFoundError

        path = self.path(table)
        if "://" not in path and (refused := re.search(DELTA_REFUSES, path)):
            raise LakeError(f"cannot open {path!r}: a path must not contain {refused[0]!r}; change [lake] location")
        with lake_errors("open", path):
            try:
                delta = _grown(DeltaTable(path), table)
            except TableNotFoundError:
                if "://" not in path:
                    make_private(Path(self.location))
                with contextlib.suppress(CommitFailedError):  # another process has just created it
                    DeltaTable.create(
                        path,
                        schema=table.schema,
                        mode="ignore",
                        name=table.name,
                        description=table.description,
                        partition_by=["date"],
                        # Statistics only for the hour: Sail reads columns that are constant in a file from statistics,
                        # and so loses the last digits of floating-point numbers.
                        configuration={
                            "delta.dataSkippingStatsColumns": table.hour,
                            VERSION: __version__,
                            **table.properties,
                        },
                        raise_if_key_not_exists=False,
                        commit_properties=CommitProperties(max_commit_retries=0),
                    )
                delta = DeltaTable(path)
        _opened.add(path)
        return delta

    def _commit(self, table: Table, make: Callable[[DeltaTable], _Write | None]) -> None:
        """Write the result of `make` for the latest version; retried if another commit comes first."""
        from deltalake import write_deltalake

        def attempt(delta: DeltaTable) -> None:
            write = make(delta)
            if write is None:
                return
            write_deltalake(
                delta,
                write.rows,
                mode="append" if write.predicate is None else "overwrite",  # type: ignore[arg-type]
                predicate=write.predicate,
                commit_properties=_guarded(delta, table, write.guard),
            )

        self._retried(table, attempt)

    def _retried(self, table: Table, attempt: Callable[[DeltaTable], T]) -> T:
        """The result of `attempt` on the table's latest version, retried if another commit comes first."""
        from deltalake.exceptions import CommitFailedError

        with lake_errors("write", self.path(table)):
            return retried(
                lambda: attempt(self._open(table)),
                lambda error: isinstance(error, CommitFailedError) and not is_unsupported(error),
                stop_after_attempt(COMMIT_ATTEMPTS),
                first_wait_s=0.02,
                longest_wait_s=2,
            )


def _vacuum(delta: DeltaTable, retention_hours: int, is_checked: bool = True) -> int:
    """Delete the files that no version younger than `retention_hours` needs; returns how many.

    With `is_checked`, delta-rs rejects less than a week, because other processes may be reading or writing.
    """
    # The first call deletes files that the log still lists. The second deletes unlisted files: those of the change data
    # feed and of killed writes.
    options = {"retention_hours": retention_hours, "dry_run": False, "enforce_retention_duration": is_checked}
    named, other = delta.vacuum(**options), delta.vacuum(**options, full=True)
    return len(named) + sum("://" not in path and not path.startswith("/") for path in other)


@dataclass(frozen=True)
class _Write:
    rows: pa.RecordBatchReader
    predicate: str | None
    guard: list[date] = field(default_factory=list)


def _grown(delta: DeltaTable, table: Table) -> DeltaTable:
    """The table after adding the columns that are new in our schema; they are null in older rows."""
    from deltalake import DeltaTable, Schema
    from deltalake.exceptions import CommitFailedError

    check_version(delta.table_uri, delta.metadata().configuration)
    present = {column.name for column in delta.schema().fields}
    missing = [column for column in table.schema if column.name not in present]
    if not missing:
        return delta
    with contextlib.suppress(CommitFailedError):  # another process has just added them
        delta.alter.set_table_properties({VERSION: __version__}, raise_if_not_exists=False)
        delta.alter.add_columns(Schema.from_arrow(pa.schema(missing)).fields)
    return DeltaTable(delta.table_uri)


def _guarded(delta: DeltaTable, table: Table, days: list[date]) -> CommitProperties:
    # Delta's application transactions serve as a lock: if two commits from the same version name the same day, the
    # second fails. Plain appends would never conflict, and could add a row twice.
    from deltalake import CommitProperties, Transaction

    names = [f"{table.name}/{day}" for day in days]
    transactions = [Transaction(name, (delta.transaction_version(name) or 0) + 1) for name in names]
    return CommitProperties(app_transactions=transactions, max_commit_retries=0 if days else None)


@functools.cache
def for_sail(location: str) -> str:
    """Return the location in a form that Sail can read: a symbolic link if its path has e.g. a space."""
    if "://" in location or re.fullmatch(SAIL_PATH, location, re.ASCII):
        return location
    folder = tempfile.mkdtemp(prefix="monitoring-lake-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder) / "lake"
    link.symlink_to(Path(location).absolute())
    return str(link)


def _filesystem(path: str) -> SubTreeFileSystem | None:
    """Arrow's file system: with delta-rs's, which is written in Python, threads can abort an exiting process."""
    return None if "://" in path else SubTreeFileSystem(path, LocalFileSystem())


def _pin(delta: DeltaTable, path: str, version: int) -> None:
    """Create a checkpoint at `version`: Sail 0.7.2 reads versions before the last checkpoint only at checkpoints."""
    checkpoint = Path(path) / "_delta_log" / f"{version:020}.checkpoint.parquet"
    if checkpoint.exists():
        return
    with lake_errors(f"read version {version} of", path):
        delta.load_as_version(version)
        delta.create_checkpoint()
