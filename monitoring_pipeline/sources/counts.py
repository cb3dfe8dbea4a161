"""How much a source has of each hour, told without reading a trace. The cost is that of the window, not of the source.

Each source counts as it reads: the same experiments, the same rule for which of several rows of a trace counts.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings, without_password
from monitoring_pipeline.sources.base import HourCounts, UncountableError
from monitoring_pipeline.windows import EPOCH, HOUR, Window

if TYPE_CHECKING:
    from mlflow.entities.trace_metrics import MetricDataPoint

CUT_OFF = 1000  # points that MLflow answers at most, without saying that there are more
SLICE = 240 * HOUR  # with four states of traces, below that
MILLISECOND = timedelta(milliseconds=1)
NO_ENDPOINT = {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}


def source_counts(
    source: ArchiveSettings, tracking: TrackingResource, spark: SparkResource, window: Window
) -> dict[datetime, HourCounts]:
    """What the source has of each hour that begins in `window` (whole hours); hours without a trace are left out.

    Raises:
        UncountableError: the MLflow server cannot count.
        TrackingError: the store or table cannot be read.
    """
    if source.source == "mlflow-sql":
        from monitoring_pipeline.sources.mlflow_sql import experiment_names, opened
        from monitoring_pipeline.sources.mlflow_sql_counts import counts_of

        with opened(source.location or tracking.tracking_uri) as database:
            return counts_of(database, list(experiment_names(database, tracking.experiments)), window)
    names = tracking.experiment_names()
    if source.location and source.source in ("delta", "otel"):
        from monitoring_pipeline.sources.table_counts import delta_counts, otel_counts

        if source.source == "delta":
            return delta_counts(spark, source.location, names, bool(tracking.experiments), window)
        return otel_counts(spark, source.location, window)
    return _metrics(tracking, list(names), window) if names else {}


def _metrics(tracking: TrackingResource, experiment_ids: list[str], window: Window) -> dict[datetime, HourCounts]:
    """What MLflow's own metrics say: on a database by its indexes, over HTTP without a trace being sent."""
    from mlflow.exceptions import MlflowException

    counts: dict[datetime, HourCounts] = {}
    uncountable = ""
    with tracking.calls():  # for its errors
        start = window.start
        while start < window.end and not uncountable:
            part = Window(start, min(start + SLICE, window.end))
            try:
                counts.update(_metrics_of(tracking, experiment_ids, part))
            except MlflowException as error:
                if error.error_code not in NO_ENDPOINT:
                    raise
                uncountable = str(error)
            start = part.end
    if uncountable:
        raise UncountableError(
            f"the MLflow server at {without_password(tracking.tracking_uri)} cannot count its traces by the hour; "
            "bring it to the version of MLflow that is installed here, or use another [archive] source"
        )
    return counts


def _metrics_of(tracking: TrackingResource, experiment_ids: list[str], part: Window) -> dict[datetime, HourCounts]:
    from mlflow.entities.trace_metrics import AggregationType, MetricViewType

    traces, in_progress = dict[datetime, int](), dict[datetime, int]()
    for point in _ask(tracking, experiment_ids, part, MetricViewType.TRACES, "trace_count", ["trace_status"]):
        hour, number = _hour(point), round(point.values["COUNT"])
        traces[hour] = traces.get(hour, 0) + number
        if point.dimensions["trace_status"] == "IN_PROGRESS":
            in_progress[hour] = number
    view = MetricViewType.ASSESSMENTS
    assessments = {
        _hour(point): round(point.values["COUNT"])
        for point in _ask(tracking, experiment_ids, part, view, "assessment_count")
    }
    # Of an assessment that is overridden only the later one counts. Nine digits: a database may sum in any order.
    marks = {
        _hour(point): f"mean {point.values['AVG']:.9g}"
        for point in _ask(tracking, experiment_ids, part, view, "assessment_value", aggregation=AggregationType.AVG)
    }
    return {
        hour: HourCounts(traces.get(hour, 0), in_progress.get(hour, 0), assessments.get(hour, 0), marks.get(hour, ""))
        for hour in traces.keys() | assessments.keys()
    }


def _ask(
    tracking: TrackingResource,
    experiment_ids: list[str],
    part: Window,
    view: Any,
    metric: str,
    dimensions: list[str] | None = None,
    aggregation: Any = "COUNT",
) -> list[MetricDataPoint]:
    from mlflow.entities.trace_metrics import AggregationType, MetricAggregation

    points = tracking.client.store.query_trace_metrics(
        experiment_ids=experiment_ids,
        view_type=view,
        metric_name=metric,
        aggregations=[MetricAggregation(AggregationType(aggregation))],
        dimensions=dimensions,
        time_interval_seconds=3600,
        start_time_ms=(part.start - EPOCH) // MILLISECOND,
        end_time_ms=(part.end - EPOCH) // MILLISECOND - 1,  # which MLflow includes
        max_results=CUT_OFF,
    )
    if len(points) >= CUT_OFF:
        raise TrackingError(f"MLflow gave {len(points)} points for {metric} of {part}, and there may be more")
    return list(points)


def _hour(point: MetricDataPoint) -> datetime:
    return datetime.fromisoformat(point.dimensions["time_bucket"])
