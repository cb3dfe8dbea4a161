"""The source `delta`: the table to which Databricks archives an experiment's traces. `delta_trace` reads its rows.

Compared with the same traces read from MLflow, the archive lacks what the table does not store:

- the nanoseconds of spans, if their times are of type TIMESTAMP (microseconds);
- the links of spans and, in the schema of MLflow 3.2, `overrides` and `valid` of assessments: all count as valid;
- rows without a request time: they belong to no hour and are skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.resources.rows import timestamp
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.sources.base import Batch, HourCounts, TraceFrames
from monitoring_pipeline.sources.delta_trace import ASSESSMENT, TRACE, build_trace
from monitoring_pipeline.sources.tables import (
    by_hour,
    flattened,
    hour_number,
    needed,
    ns_to_us,
    open_table,
    present,
    type_of,
)
from monitoring_pipeline.windows import Window, to_microseconds

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


@dataclass(frozen=True)
class DeltaSource:
    """The table at `location` (catalog.schema.name, a folder or an address); a `Source`.

    `experiment_names` are id -> name. With `limited`, only rows of these experiments and rows without an experiment are
    read; the latter belong to the experiment if there is exactly one.
    """

    spark: SparkResource
    location: str
    experiment_names: dict[str, str]
    limited: bool

    def counts(self, window: Window) -> dict[datetime, HourCounts]:
        """As `Source.counts`; the mark is the number of rows, since every change appends to the table.

        A trace with several rows counts once: in progress if all its rows are, with the largest number of assessments
        in a row.

        Raises:
            TrackingError: the table does not exist, or lacks a column.
        """
        from pyspark.sql import functions as F

        rows = self._rows(window)
        trace_id, requested, state = (
            needed(rows.schema, TRACE[name], self.location) for name in ("trace_id", "request_time", "state")
        )
        row = rows.select(
            F.coalesce(F.col(trace_id), F.lit("")).alias("trace_id"),
            hour_number(_microseconds(rows, requested)).alias("number"),
            (F.col(state) == "IN_PROGRESS").cast("int").alias("in_progress"),
            _number_of_assessments(rows).alias("assessments"),
        )
        traces = row.groupBy("number", "trace_id").agg(
            F.min("in_progress").alias("in_progress"),
            F.max("assessments").alias("assessments"),
            F.count("*").alias("rows"),
        )
        return by_hour(traces)

    def read(self, window: Window) -> TraceFrames:
        """As `Source.read`."""
        return TraceFrames(window, self.traces)

    def moved(self, hours: Mapping[str, datetime]) -> Iterator[Batch]:
        """Return nothing: tables are not searched by trace id. Archiving a moved trace's new hour finds it."""
        return iter(())

    def traces(self, window: Window) -> DataFrame:
        """The traces of the table that start in `window`, with the columns of `FLATTENED`.

        Raises:
            TrackingError: the table does not exist, or lacks a column.
        """
        rows = self._rows(window)
        trace_id, requested, state, _ = (
            needed(rows.schema, TRACE[name], self.location) for name in ("trace_id", "request_time", "state", "spans")
        )
        only = next(iter(self.experiment_names)) if self.limited and len(self.experiment_names) == 1 else None
        latest = _latest(_without_variants(rows), trace_id, requested, state)
        return flattened(latest, functools.partial(build_trace, experiment_id=only), self.experiment_names, only)

    def _rows(self, window: Window) -> DataFrame:
        """The rows of the experiments whose request is in `window`."""
        table = open_table(self.spark, self.location)
        rows = table.where(_within(table, needed(table.schema, TRACE["request_time"], self.location), window))
        if self.limited and (experiment := present(table.schema, TRACE["experiment_id"])):
            rows = rows.where(rows[experiment].isNull() | rows[experiment].isin(*self.experiment_names))
        return rows


def _within(table: DataFrame, requested: str, window: Window) -> Column:
    from pyspark.sql.types import LongType

    time = table[requested]
    if not isinstance(type_of(table.schema, requested), LongType):
        return (time >= timestamp(window.start)) & (time < timestamp(window.end))
    start_us, end_us = to_microseconds(window.start), to_microseconds(window.end)
    in_ms = (time >= -(-start_us // 1000)) & (time < -(-end_us // 1000))
    in_ns = (time >= start_us * 1000) & (time < end_us * 1000)
    return in_ms | in_ns | ((time >= start_us) & (time < end_us))


def _microseconds(rows: DataFrame, requested: str) -> Column:
    """The request time in us, from a timestamp or a number in ms, us or ns (see `entities.nanoseconds`)."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import LongType

    time = rows[requested]
    if not isinstance(type_of(rows.schema, requested), LongType):
        return F.unix_micros(time.cast("timestamp"))
    return F.when(time < 10**14, time * 1000).when(time < 10**17, time).otherwise(ns_to_us(time))


def _number_of_assessments(rows: DataFrame) -> Column:
    from pyspark.sql import functions as F
    from pyspark.sql.types import StringType, VariantType

    path = present(rows.schema, TRACE["assessments"])
    if path is None:
        return F.lit(0)
    kind = type_of(rows.schema, path)
    if isinstance(kind, VariantType):
        number = F.json_array_length(F.to_json(path))
    else:
        number = F.json_array_length(path) if isinstance(kind, StringType) else F.size(path)
    return F.coalesce(F.greatest(number, F.lit(0)), F.lit(0))


def _without_variants(rows: DataFrame) -> DataFrame:
    """The rows with VARIANT columns converted to JSON, since Arrow has no such type."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import VariantType

    variants = [field.name for field in rows.schema if isinstance(field.dataType, VariantType)]
    return rows.withColumns({name: F.to_json(name) for name in variants}) if variants else rows


def _latest(rows: DataFrame, trace_id: str, requested: str, state: str) -> DataFrame:
    """The latest row of each trace. A trace that changed after it was archived has several.

    Rows do not store when they were written, so their content decides: a finished trace is later than one in progress,
    then the latest change of an assessment counts, then the number of assessments, of spans and of tags.
    """
    from pyspark.sql import Window as Rows
    from pyspark.sql import functions as F
    from pyspark.sql.types import StringType

    def size(name: str) -> list[Column]:
        path = present(rows.schema, TRACE[name])
        if path is None:
            return []
        is_text = isinstance(type_of(rows.schema, path), StringType)
        return [(F.length(path) if is_text else F.size(path)).desc()]

    changed = present(rows.schema, tuple(f"assessments.{name}" for name in ASSESSMENT["last_update_time"]))
    by_content = [
        (F.col(state) == "IN_PROGRESS").asc(),
        *([F.array_max(changed).desc_nulls_last()] if changed else []),
        *size("assessments"),
        *size("spans"),
        *size("tags"),
        F.to_json(F.struct(*[name for name in rows.columns if name not in ("spans", "assessments")])).desc(),
    ]
    identified = rows.withColumn("trace_id", F.coalesce(F.col(trace_id), F.lit("")))
    ranked = identified.withColumn("rank", F.row_number().over(Rows.partitionBy("trace_id").orderBy(*by_content)))
    return ranked.where(F.col("rank") == 1).drop("rank").withColumn("started", F.col(requested))
