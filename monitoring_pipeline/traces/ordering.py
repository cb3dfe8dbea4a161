"""MLflow's `order_by` of a trace search, applied to rows of `agent_traces`.

MLflow's parser reads the clauses. The order equals that of MLflow 3.17.2 on SQLite
(`_get_orderby_clauses_for_search_traces` in mlflow/store/tracking/sqlalchemy_store.py): missing values sort last in
both directions, text sorts by its bytes, and ties are ordered newest first, within a millisecond by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import one_line
from monitoring_pipeline.traces.filters import NUMERIC_METADATA

if TYPE_CHECKING:
    from pyspark.sql import Column

NEWEST_FIRST = ("timestamp_ms DESC", "request_id ASC")


def ordering(order_by: Sequence[str]) -> list[Column]:
    """Return the sort columns for rows of `agent_traces`; newest first if `order_by` is empty.

    Raises:
        ValueError: MLflow rejects a clause; a one-line reason.
    """
    keys: dict[tuple[str, str], bool] = {}
    for clause in order_by:
        try:
            kind, key, ascending = _parsed(clause)
        except Exception as error:  # MLflow's parser may raise any error on malformed text
            raise ValueError(f"order_by {clause!r}: {one_line(error)}") from error
        if (kind, key) in keys:
            raise ValueError(f"order_by {clause!r}: the key occurs twice")
        keys[kind, key] = ascending
    for clause in NEWEST_FIRST:
        kind, key, ascending = _parsed(clause)
        keys.setdefault((kind, key), ascending)
    columns = ((_column(kind, key), ascending) for (kind, key), ascending in keys.items())
    return [column.asc_nulls_last() if ascending else column.desc_nulls_last() for column, ascending in columns]


def _parsed(clause: str) -> tuple[str, str, bool]:
    from mlflow.utils.search_utils import SearchTraceUtils

    kind, key, ascending = SearchTraceUtils.parse_order_by_for_search_traces(clause)
    if kind not in ("attribute", "tag", "request_metadata"):
        raise ValueError(f"Invalid identifier type '{kind}'")
    if (kind == "request_metadata" and key in NUMERIC_METADATA) or (kind, key) == ("attribute", "end_time_ms"):
        raise ValueError(f"MLflow cannot order by '{key}'")
    return kind, key, ascending


def _column(kind: str, key: str) -> Column:
    from pyspark.sql import functions as F

    match kind, key:
        case "tag", _:
            return F.col("tags")[key]
        case "request_metadata", _:
            return F.col("metadata")[key]
        case _, "timestamp_ms":
            return F.unix_millis(F.col("trace_info")["timestamp"])
        case _, "execution_time_ms":
            return F.col("duration_ms")
        case _, "experiment_id":
            return F.col("experiment_id").cast("long")
        case _, "status":
            return F.col("trace_info")["status"]
        case _:
            return F.col("trace_id")  # request_id
