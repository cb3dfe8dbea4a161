"""The lake as tables of a Spark catalog (Unity Catalog on Databricks, a metastore on a cluster), written by Spark.

Delta isolates overlapping runs: if two commits touch the same days, the second fails and is retried.

SQL text is used only if Spark has no other API. It contains only names of our tables, a location of two plain
identifiers, and times.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from tenacity import stop_after_attempt

from monitoring_pipeline.columns import COMMENTS
from monitoring_pipeline.errors import LakeError, first_line
from monitoring_pipeline.resources.rows import (
    CLOCK_SKEW,
    check_columns,
    conform,
    hours_of,
    in_window,
    last_of_each_key,
    timestamp,
    within,
)
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.retries import retried
from monitoring_pipeline.tables import Table
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row
    from pyspark.sql.types import StructField, StructType

COMMIT_ATTEMPTS = 20
RECENT_COMMITS = 100
RETENTION_CHECK = "spark.databricks.delta.retentionDurationCheck.enabled"  # rejects less than a week
T = TypeVar("T")

_opened: set[tuple[str | None, str]] = set()  # tables that this process has created or checked


@dataclass(frozen=True)
class CatalogTables:
    """The tables of `location`, a catalog.schema; methods as in LakeResource."""

    commit_rows: ClassVar = 50_000  # a commit takes seconds

    location: str
    spark: SparkResource

    def path(self, table: Table) -> str:
        return f"{self.location}.{table.name}"

    def version(self, table: Table) -> int:
        return self._history(table, 1)[0]["version"]

    def read(self, table: Table, window: Window | None, version: int | None) -> DataFrame:
        name, reader = self._open(table), self.spark.session.read
        rows = (reader if version is None else reader.option("versionAsOf", version)).table(name)
        return rows if window is None else rows.where(in_window(table, window))

    def read_columns(self, table: Table, window: Window, *columns: str) -> pa.Table:
        return _collected(table, self.read(table, window, None).select(*columns))

    def read_written_since(self, table: Table, moment: datetime, *columns: str) -> pa.Table:
        from pyspark.sql import functions as F

        rows = self.read(table, None, None)
        recent = F.col("_metadata.file_modification_time") >= timestamp(moment - CLOCK_SKEW)
        return _collected(table, rows.where(recent).select(*columns))

    def replace(self, table: Table, window: Window, rows: DataFrame | pa.Table) -> int:
        new = self._conformed(table, rows)
        commit = uuid.uuid4().hex

        def write() -> None:
            new.writeTo(self._open(table)).option("userMetadata", commit).overwrite(in_window(table, window))

        self._retried(table, write)
        own = [entry for entry in self._history(table, RECENT_COMMITS) if entry["userMetadata"] == commit]
        if not own:  # replacing no rows with no rows creates no commit
            return 0
        metrics = own[0]["operationMetrics"]
        return int(metrics.get("numOutputRows", 0)) - int(metrics.get("numCopiedRows", 0))

    def merge(self, table: Table, rows: DataFrame | pa.Table, window: Window | None, update: bool) -> int:
        from pyspark.sql import functions as F

        arrow = last_of_each_key(table, conform(table, rows)) if isinstance(rows, pa.Table) else None
        if arrow is not None:
            if arrow.num_rows == 0:
                return 0
            window = window or hours_of(table, arrow)
        if window is None:
            raise ValueError("a DataFrame needs a window that contains its rows")
        new = self._conformed(table, rows if arrow is None else arrow)
        columns = dict.fromkeys(("date", table.hour, *table.key))
        same = " AND ".join([within(table, window, "t."), *(f"t.{name} <=> n.{name}" for name in columns)])
        changed = " OR ".join(f"NOT (t.{name} <=> n.{name})" for name in table.content) if update else ""
        if arrow is not None:  # skip a merge that changes nothing: it would still create a commit
            joined = new.alias("n").join(self.read(table, None, None).alias("t"), F.expr(same), "left")
            if joined.where(F.expr(f"t.date IS NULL OR {changed or 'false'}")).isEmpty():
                return 0
        merge = (
            f"MERGE INTO {self._open(table)} AS t USING {{new}} AS n ON {same} "
            + (f"WHEN MATCHED AND ({changed}) THEN UPDATE SET * " if changed else "")
            + "WHEN NOT MATCHED THEN INSERT *"
        )
        (outcome,) = self._retried(table, lambda: self.spark.session.sql(merge, new=new).collect())
        return outcome["num_affected_rows"]

    def maintain(self, table: Table, retention_hours: int) -> dict[str, int]:
        name, session = self._open(table), self.spark.session
        (compaction,) = self._retried(table, lambda: session.sql(f"OPTIMIZE {name}").collect())
        self._retried(table, lambda: session.sql(f"VACUUM {name} RETAIN {int(retention_hours)} HOURS").collect())
        vacuumed = next(entry for entry in self._history(table, RECENT_COMMITS) if entry["operation"] == "VACUUM END")
        return {
            "files_added": compaction["metrics"]["numFilesAdded"],
            "files_removed": compaction["metrics"]["numFilesRemoved"],
            "files_deleted": int(vacuumed["operationMetrics"]["numDeletedFiles"]),
        }

    def remove(self, table: Table, window: Window, column: str, values: Collection[str]) -> int:
        name, gone = self._open(table), pa.table({"value": pa.array(sorted(values), pa.string())})
        found = self.read_columns(table, window, column)[column]
        if not pc.any(pc.is_in(found, gone["value"].combine_chunks())).as_py():
            return 0  # a merge without matches would still create a commit
        merge = (
            f"MERGE INTO {name} AS t USING {{gone}} AS n ON {within(table, window, 't.')} AND t.{column} = n.value "
            "WHEN MATCHED THEN DELETE"
        )
        rows = self.spark.session.createDataFrame(gone)
        (outcome,) = self._retried(table, lambda: self.spark.session.sql(merge, gone=rows).collect())
        return outcome["num_affected_rows"]

    def remove_before(self, table: Table, day: date) -> int:
        from pyspark.sql import functions as F

        is_before = F.col("date") < F.lit(day)
        removed = self.read(table, None, None).where(is_before).count()
        nothing = self._conformed(table, table.schema.empty_table())
        if removed:
            self._retried(table, lambda: nothing.writeTo(self._open(table)).overwrite(is_before))
        return removed

    def purge(self, table: Table) -> None:
        name, session = self._open(table), self.spark.session
        (detail,) = session.sql(f"DESCRIBE DETAIL {name}").select("tableFeatures").collect()
        if "deletionVectors" in detail["tableFeatures"]:  # deleted rows may remain in files that were not rewritten
            self._retried(table, lambda: session.sql(f"REORG TABLE {name} APPLY (PURGE)").collect())
        session.conf.set(RETENTION_CHECK, "false")
        try:
            self._retried(table, lambda: session.sql(f"VACUUM {name} RETAIN 0 HOURS").collect())
        finally:
            session.conf.unset(RETENTION_CHECK)

    def _history(self, table: Table, commits: int) -> list[Row]:
        history = self.spark.session.sql(f"DESCRIBE HISTORY {self._open(table)} LIMIT {int(commits)}")
        return history.select("version", "operation", "operationMetrics", "userMetadata").collect()

    def _conformed(self, table: Table, rows: DataFrame | pa.Table) -> DataFrame:
        """`rows` as a DataFrame with exactly the table's columns and types."""
        from pyspark.sql import functions as F

        if isinstance(rows, pa.Table):
            return self.spark.session.createDataFrame(conform(table, rows), _schema(table))
        if "date" not in rows.columns:
            rows = rows.withColumn("date", F.col(table.hour).cast("date"))
        check_columns(table, rows.columns)
        return rows.select(*(F.col(field.name).cast(field.dataType) for field in _schema(table)))

    def _open(self, table: Table) -> str:
        """Create the table, or add its missing columns; returns its full name."""
        from pyspark.errors import PySparkException

        name = self.path(table)
        if (self.spark.remote, name) in _opened:
            return name
        if self.spark.is_embedded:
            raise LakeError(f"cannot open {name}: the embedded engine has no catalog; set [spark] remote, or a folder")
        try:
            if self.spark.session.catalog.tableExists(name):
                self._grow(table, name)
            else:
                self._create(table, name)
        except PySparkException as error:
            raise LakeError(f"cannot open {name}: {first_line(error)}; check [lake] location") from error
        _opened.add((self.spark.remote, name))
        return name

    def _create(self, table: Table, name: str) -> None:
        session = self.spark.session
        if not session.catalog.databaseExists(self.location):
            session.sql(f"CREATE SCHEMA IF NOT EXISTS {self.location}")
        properties = ", ".join(f"'{key}' = '{value}'" for key, value in table.properties.items())
        session.sql(
            f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(map(_column, _schema(table)))}) USING DELTA "
            + ("CLUSTER BY AUTO " if self.spark.is_databricks else "PARTITIONED BY (date) ")
            + f"COMMENT {_literal(table.description)}"
            + (f" TBLPROPERTIES ({properties})" if properties else "")
        )

    def _grow(self, table: Table, name: str) -> None:
        """Add the columns that are new in our schema; they are null in older rows."""
        from pyspark.errors import PySparkException

        session = self.spark.session

        def missing() -> list[StructField]:
            present = set(session.read.table(name).columns)
            return [field for field in _schema(table) if field.name not in present]

        if columns := missing():
            try:
                session.sql(f"ALTER TABLE {name} ADD COLUMNS ({', '.join(map(_column, columns))})")
            except PySparkException:
                if missing():  # otherwise another process has just added them
                    raise

    def _retried(self, table: Table, write: Callable[[], T]) -> T:
        """The result of `write`, retried if another commit comes first."""
        from pyspark.errors import PySparkException

        try:
            return retried(write, _is_conflict, stop_after_attempt(COMMIT_ATTEMPTS))
        except PySparkException as error:
            raise LakeError(f"cannot write {self.path(table)}: {first_line(error)}") from error


def _is_conflict(error: BaseException) -> bool:
    from pyspark.errors import PySparkException

    return isinstance(error, PySparkException) and (error.getCondition() or "").startswith("DELTA_CONCURRENT")


def _collected(table: Table, rows: DataFrame) -> pa.Table:
    return rows.toArrow().cast(pa.schema([table.schema.field(name) for name in rows.columns]))


def _schema(table: Table) -> StructType:
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(table.schema)


def _column(field: StructField) -> str:
    required = "" if field.nullable else " NOT NULL"
    return f"{field.name} {field.dataType.simpleString()}{required} COMMENT {_literal(COMMENTS[field.name])}"


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
