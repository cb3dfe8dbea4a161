"""Traces that a caller gives, in the forms in which MLflow and the archive hand them out."""

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
    """The traces as rows of `agent_traces`, made in memory; rows of the archive are returned as they are.

    MLflow's traces may come as a list, or as the table that mlflow.search_traces returns; each counts once, and
    `created_at` is now. One that could not be archived either is left out, with a warning that says why.

    Raises:
        MonitoringError: what is given is none of these, or lacks columns.
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
    """The traces of a list, or of a table as mlflow.search_traces returns it.

    Raises:
        MonitoringError: the table has no column `trace`, or an element is no trace.
    """
    import pandas as pd

    if not isinstance(traces, pd.DataFrame):
        return [_trace(trace) for trace in traces]
    table: Any = traces
    if "trace" not in table.columns:
        raise MonitoringError(f"the table of traces has no column 'trace', only {', '.join(map(str, table.columns))}")
    return [_trace(trace) for trace in table["trace"]]


def _trace(given: Any) -> Trace:
    from mlflow.entities import Trace

    if isinstance(given, Trace):
        return given
    try:
        return Trace.from_json(given)
    except Exception as error:  # text that is no trace fails in whatever way its parsing does
        raise MonitoringError(
            f"{str(given)[:80]!r} is no trace ({first_line(error)}); give what mlflow.search_traces returns"
        ) from error
