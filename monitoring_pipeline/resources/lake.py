"""The lake: Delta tables, in folders or in a catalog.

All writes go through this module. Each write has exactly the table's schema and is one atomic commit. If another
process commits to the same days first, the write is retried, so that overlapping runs neither lose nor duplicate rows.
No write brings back a trace that was deleted on request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import date, datetime
from typing import TYPE_CHECKING, cast

import dagster as dg
import pyarrow as pa
from pydantic import Field

from monitoring_pipeline.resources.catalog_tables import CatalogTables
from monitoring_pipeline.resources.delta_folders import DeltaFolders
from monitoring_pipeline.resources.rows import hours_of
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tombstones import (
    DESCRIBED,
    OF_SESSION,
    around,
    complete,
    deleted_digests,
    is_about,
    without_deleted,
)
from monitoring_pipeline.settings import in_catalog
from monitoring_pipeline.settings.upkeep import oldest_kept
from monitoring_pipeline.tables import AGENT_TRACES, Table
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class LakeResource(dg.ConfigurableResource):
    """The Delta tables at one location. First use creates a table or adds its missing columns.

    All methods raise:
        LakeError: the table cannot be opened or written, or the columns of rows differ from the table's.
    """

    location: str = Field(description="folder or object store address with one folder per table, or catalog.schema")
    spark: SparkResource
    keep_archive_days: int | None = Field(
        default=None, description="[upkeep] keep_archive_days, after which traces are removed"
    )

    @property
    def kept_since(self) -> datetime | None:
        """The earliest time that the archive keeps; None if it keeps everything."""
        return oldest_kept(self.keep_archive_days)

    @property
    def _tables(self) -> DeltaFolders | CatalogTables:
        return (CatalogTables if self.is_in_catalog else DeltaFolders)(self.location, self.spark)

    @property
    def is_in_catalog(self) -> bool:
        """Whether the tables are in a catalog: Spark then writes them, without passing rows through this process."""
        return in_catalog(self.location)

    @property
    def commit_rows(self) -> int:
        """The number of rows per commit that amortizes its cost."""
        return self._tables.commit_rows

    def path(self, table: Table) -> str:
        """Return the table's folder, address or full name."""
        return self._tables.path(table)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Refuse to run if the instance has used another lake here, see `check_known`."""
        from monitoring_pipeline.resources.known_lakes import check_known

        if context.instance is not None:
            check_known(self, context.instance)

    def identity(self) -> str | None:
        """Return the id that agent_traces got when it was created; None if it does not exist. Only for folders."""
        assert not self.is_in_catalog
        return DeltaFolders(self.location, self.spark).identity(AGENT_TRACES)

    def version(self, table: Table) -> int:
        """Return the version of the table's latest commit; two reads at the same version see the same rows."""
        return self._tables.version(table)

    def read(self, table: Table, window: Window | None = None, version: int | None = None) -> DataFrame:
        """Return the table's rows in `window` (default: all) as a Spark DataFrame, at `version` (default: the latest).

        Opens only the files of the window's days.
        """
        return self._tables.read(table, window, version)

    def read_columns(self, table: Table, window: Window, *columns: str) -> pa.Table:
        """Return these columns of the rows in `window`."""
        return self._tables.read_columns(table, window, *columns)

    def read_written_since(self, table: Table, moment: datetime, *columns: str) -> pa.Table:
        """Return these columns of all rows in files written at or after `moment`, which may include older rows."""
        return self._tables.read_written_since(table, moment, *columns)

    def replace(self, table: Table, window: Window, rows: DataFrame | pa.Table) -> int:
        """Replace the table's rows in `window` with `rows`; returns the number of `rows`."""
        return self._write(table, rows, window, lambda rows: self._tables.replace(table, window, rows))

    def insert(self, table: Table, rows: DataFrame | pa.Table, window: Window | None = None) -> int:
        """Add the rows whose key is not in the table; returns how many were added.

        If rows of an Arrow table share a key, the last one counts. Rows of a DataFrame must have distinct keys and
        require `window`, which must contain them.
        """
        return self._write(table, rows, window, lambda rows: self._tables.merge(table, rows, window, update=False))

    def upsert(self, table: Table, rows: DataFrame | pa.Table, window: Window | None = None) -> int:
        """Add the rows whose key is not in the table, and update rows whose content differs.

        Returns how many were added or updated; an Arrow table that changes nothing creates no commit. Never removes
        rows. Keys and `window` are as for `insert`.
        """
        return self._write(table, rows, window, lambda rows: self._tables.merge(table, rows, window, update=True))

    def maintain(self, table: Table, retention_hours: int = 168) -> dict[str, int]:
        """Compact small files, and delete files that no version younger than `retention_hours` needs.

        Returns the counts `files_added` and `files_removed` of the compaction, and `files_deleted` of the vacuum.
        """
        return self._tables.maintain(table, retention_hours)

    def remove(self, table: Table, window: Window, column: str, values: Collection[str]) -> int:
        """Remove the rows in `window` whose text `column` is one of `values`; returns how many.

        Creates no commit if there are none. Older versions of the table still have the rows: see `purge`.
        """
        return self._tables.remove(table, window, column, values)

    def remove_before(self, table: Table, day: date) -> int:
        """Remove all rows of days before `day`; returns how many. Creates no commit if there are none."""
        return self._tables.remove_before(table, day)

    def purge(self, table: Table) -> None:
        """Delete all files that are not part of the table's latest version, including files of killed writes.

        Readers of older versions and concurrent writers fail, so nothing else may use the table meanwhile.
        """
        self._tables.purge(table)

    def _write(
        self,
        table: Table,
        rows: DataFrame | pa.Table,
        window: Window | None,
        write: Callable[[DataFrame | pa.Table], int],
    ) -> int:
        """The result of `write` for the rows, without traces that were deleted on request before or meanwhile.

        If a trace is deleted while its rows are written, they are removed again and the deletion becomes incomplete, so
        that the next one also deletes the files that held them.
        """
        if "trace_id" not in table.schema.names:
            return write(rows)
        if window is None:
            arrow = cast("pa.Table", rows)  # only a DataFrame requires a window
            if arrow.num_rows == 0:
                return write(rows)
            window = hours_of(table, arrow)
        before = deleted_digests(self, table, window)
        written = write(without_deleted(rows, before))
        since = deleted_digests(self, table, window) - before
        if since:
            named = "assessment_id" if OF_SESSION in table.schema.names else "trace_id"
            found = self.read_columns(table, window, named, *DESCRIBED.intersection(table.schema.names) - {named})
            self.remove(table, window, named, set(found.filter(is_about(found, since))[named].to_pylist()))
            complete(self, around(table, window), since, None)
        return written
