"""Trace search on the archive with MLflow's semantics."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.filters import Condition, matches, parse_filter
from monitoring_pipeline.traces.ordering import ordering
from monitoring_pipeline.windows import Window, from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from pyspark.sql import DataFrame

    from monitoring_pipeline.resources.lake import LakeResource


def find_traces(
    lake: LakeResource,
    window: Window | None = None,
    filter_string: str | None = None,
    order_by: Sequence[str] | None = None,
    max_results: int | None = None,
) -> DataFrame:
    """Return the rows of `agent_traces` in `window` (None: all hours) that match the MLflow filter, in MLflow's order.

    Without `order_by`, the newest come first. Reads only days that the window and the filter's conditions on
    timestamp_ms allow.

    Raises:
        MonitoringError: the filter, the order or the number of results is invalid; a one-line reason.
    """
    from pyspark.sql import functions as F

    if max_results is not None and max_results < 0:
        raise MonitoringError(f"max_results = {max_results}: must be at least 0")
    rows = lake.read(AGENT_TRACES, window)  # first: building columns needs a Spark session
    try:
        conditions = parse_filter(filter_string) if filter_string else []
        order, passes = ordering(order_by or []), matches(filter_string)
    except ValueError as error:
        raise MonitoringError(str(error)) from error
    first, last = _days(conditions)
    if first:
        rows = rows.where(F.col("date") >= F.lit(first))
    if last:
        rows = rows.where(F.col("date") <= F.lit(last))
    found = rows.where(passes).orderBy(*order)
    return found if max_results is None else found.limit(max_results)


def find_trace(lake: LakeResource, trace_id: str) -> DataFrame:
    """Return the row of `agent_traces` of that trace.

    Raises:
        MonitoringError: the trace is not in the archive.
    """
    from pyspark.sql import functions as F

    def having_id(rows: DataFrame) -> DataFrame:
        return rows.where(F.col("trace_id") == F.lit(trace_id))

    # Find the hour in two narrow columns first, so that the wide columns are read only for its day.
    hours = having_id(lake.read(AGENT_TRACES)).select("trace_hour").toArrow()["trace_hour"].to_pylist()
    if not hours:
        raise MonitoringError(f"no trace {trace_id} in the archive; archive its hour first, or pass the trace itself")
    return having_id(lake.read(AGENT_TRACES, Window.covering(hours)))


def stored_trace(trace_json: str) -> Trace:
    """Return the MLflow trace from `trace_json` of `agent_traces`."""
    from mlflow.entities import Trace

    body = json.loads(trace_json)
    trace = Trace.from_dict(body)
    # MLflow writes `valid` of an expectation but does not read it back.
    for assessment, written in zip(trace.info.assessments, body["info"].get("assessments", []), strict=True):
        assessment.valid = written.get("valid")
    return trace


def _days(conditions: Sequence[Condition]) -> tuple[date | None, date | None]:
    """The first and last day on which a matching trace can have started; None if the conditions set no limit."""
    first: date | None = None
    last: date | None = None
    for condition in conditions:
        if (condition.kind, condition.key) == ("attribute", "timestamp_ms") and (day := _day(condition.value)):
            if condition.comparator in (">", ">=", "="):
                first = max(first or day, day)
            if condition.comparator in ("<", "<=", "="):
                last = min(last or day, day)
    return first, last


def _day(milliseconds: object) -> date | None:
    """The day of a number of milliseconds since 1970; None for any other value of a filter."""
    if not isinstance(milliseconds, int | float):
        return None
    try:
        return from_milliseconds(math.floor(milliseconds)).date()
    except OverflowError:
        return None
