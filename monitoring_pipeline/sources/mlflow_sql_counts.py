"""How much the database of a self-hosted MLflow has of each hour, by the index on the time of traces."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from mlflow.store.tracking.dbmodels.models import SqlAssessments, SqlTraceInfo

from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.windows import EPOCH, HOUR, Window

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Engine

MILLISECOND = timedelta(milliseconds=1)


def counts_of(engine: Engine, experiment_ids: list[str], window: Window) -> dict[datetime, HourCounts]:
    """What the database has of each hour in `window`, of one moment; the mark is the latest change of an assessment.

    Raises:
        SQLAlchemyError: the database does not answer.
    """
    traces, assessments = _queries(experiment_ids, window)
    with engine.begin() as connection:
        counted = connection.execute(traces).all()
        assessed = {row.number: row for row in connection.execute(assessments).all()}
    counts: dict[datetime, HourCounts] = {}
    for row in counted:
        of_assessments = assessed.get(row.number)
        counts[EPOCH + row.number * HOUR] = HourCounts(
            row.traces,
            row.in_progress,
            of_assessments.assessments if of_assessments else 0,
            f"changed {of_assessments.changed_ms}" if of_assessments else "",
        )
    return counts


def _queries(experiment_ids: list[str], window: Window) -> tuple[Any, Any]:
    """Of each hour's number since 1970: traces and those in progress; assessments and their latest change."""
    start_ms, end_ms = ((moment - EPOCH) // MILLISECOND for moment in (window.start, window.end))
    # A constant, not a parameter: of two parameters PostgreSQL does not know that they are the same.
    hour_ms: ColumnElement[int] = sa.literal_column(str(HOUR // MILLISECOND), sa.BigInteger)
    number = (SqlTraceInfo.timestamp_ms // hour_ms).label("number")
    within = (
        SqlTraceInfo.experiment_id.in_([int(experiment_id) for experiment_id in experiment_ids])
        & (SqlTraceInfo.timestamp_ms >= start_ms)
        & (SqlTraceInfo.timestamp_ms < end_ms)
    )
    in_progress = sa.func.sum(sa.case((SqlTraceInfo.status == "IN_PROGRESS", 1), else_=0))
    traces = sa.select(number, sa.func.count().label("traces"), in_progress.label("in_progress"))
    assessments = sa.select(
        number,
        sa.func.count().label("assessments"),
        sa.func.max(SqlAssessments.last_updated_timestamp).label("changed_ms"),
    ).join_from(SqlTraceInfo, SqlAssessments, SqlAssessments.trace_id == SqlTraceInfo.request_id)
    return traces.where(within).group_by("number"), assessments.where(within).group_by("number")
