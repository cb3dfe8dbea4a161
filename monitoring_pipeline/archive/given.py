"""Traces that a caller passes to the API, in the forms that MLflow and the archive return."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from monitoring_pipeline.errors import MonitoringError, first_line
from monitoring_pipeline.tables import AGENT_TRACES

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Trace
    from pyspark.sql import DataFrame, SparkSession

MlflowTraces: TypeAlias = "Iterable[Trace] | pd.DataFrame"
GivenTraces: TypeAlias = "Iterable[Trace] | pd.DataFrame | DataFrame"


def archive_rows(spark: SparkSession, traces: GivenTraces) -> DataFrame:
    """Return the traces as rows of `agent_traces` in memory; rows of the archive are returned unchanged.

    MLflow traces may be a list or the table that mlflow.search_traces returns. Duplicates are dropped, and `created_at`
    is now. Malformed traces are left out with a warning that shows the first reason.

    Raises:
        MonitoringError: `traces` has another form or lacks columns.
    """
    from pyspark.sql import DataFrame
    from pyspark.sql.pandas.types import from_arrow_schema

    from monitoring_pipeline.archive.merging import rows_of
    from monitoring_pipeline.resources.rows import conform

    if isinstance(traces, DataFrame):
        if missing := [name for name in AGENT_TRACES.schema.names if name not in traces.columns]:
            raise MonitoringError(f"the rows of traces lack the columns {', '.join(missing)} of {AGENT_TRACES.name}")
        return traces
    rows, unreadable = rows_of({trace.info.trace_id: trace for trace in mlflow_traces(traces)}.values())
    if unreadable:
        first = f"{unreadable[0].trace_id}: {unreadable[0].reason}"
        warnings.warn(f"{len(unreadable)} malformed traces are left out, such as {first}", stacklevel=2)
    return spark.createDataFrame(conform(AGENT_TRACES, rows), from_arrow_schema(AGENT_TRACES.schema))


def mlflow_traces(traces: MlflowTraces) -> list[Trace]:
    """Return the traces of a list, or of a table as returned by mlflow.search_traces.

    Raises:
        MonitoringError: the table has no column `trace`, or an element is not a trace.
    """
    import pandas as pd

    if not isinstance(traces, pd.DataFrame):
        return [_trace(trace) for trace in traces]
    table: Any = traces
    if "trace" not in table.columns:
        raise MonitoringError(f"the table of traces has no column 'trace', only {', '.join(map(str, table.columns))}")
    return [_trace(trace) for trace in table["trace"]]


def _trace(value: Any) -> Trace:
    from mlflow.entities import Trace

    if isinstance(value, Trace):
        return value
    try:
        return Trace.from_json(value)
    except Exception as error:  # parsing a text that is not a trace may raise any error
        raise MonitoringError(
            f"{str(value)[:80]!r} is not a trace ({first_line(error)}); pass the result of mlflow.search_traces"
        ) from error
