"""The source `mlflow`: traces of an MLflow store or server, read with MLflow's client."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tenacity import stop_after_attempt

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.servers import (
    BATCH_GET,
    BATCH_GET_INFOS,
    GET,
    METRICS,
    SEARCH,
    lacks,
    raise_if_lacking,
)
from monitoring_pipeline.resources.tracking import TrackingResource, global_tracking_uri
from monitoring_pipeline.retries import retried
from monitoring_pipeline.sources.base import HourCounts
from monitoring_pipeline.sources.mlflow_server import PageInParts, ServerHealth, page_token, trace_without_assessments
from monitoring_pipeline.traces.flatten import UNREADABLE_VALUE, UnreadableTrace
from monitoring_pipeline.windows import HOUR, Window, floor_hour, from_milliseconds, to_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace, TraceInfo
    from mlflow.entities.trace_metrics import MetricDataPoint
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracing.client import TracingClient

T = TypeVar("T")
PAGE = 500  # the largest page that servers accept
BATCH = 100
ATTEMPTS = 4  # to get an answer that can be understood
IN_FLIGHT = 4  # requests to a server at a time: MLflow starts as many processes for it
SPANS_LOCATION, SENT_IN_BATCHES = "mlflow.trace.spansLocation", {"TRACKING_STORE", "ARCHIVE_REPO"}
METRIC_POINTS = 1000  # MLflow returns at most this many and does not report truncation
METRIC_SLICE = 240 * HOUR  # 960 points: one per hour and each of four states

ENDED = ("ERROR", "OK")  # not in progress: then each span would make the hour due

log = logging.getLogger(__name__)


@dataclass
class MlflowSource:
    """The experiments `experiment_names` (id -> name) of the store or server of `tracking`; a `Source`."""

    tracking: TrackingResource
    experiment_names: dict[str, str]
    _has_metrics: bool = field(default=True, init=False)

    def counts(self, window: Window) -> dict[datetime, HourCounts]:
        """As `Source.counts`, from MLflow's trace metrics.

        The mark is the mean value of the hour's assessments, and the mean durations of the traces that have ended.
        Servers without trace metrics list the traces of the window instead.
        """
        if not self.experiment_names:
            return {}
        from mlflow.exceptions import MlflowException

        experiment_ids = list(self.experiment_names)
        with self.tracking.calls():  # turns MLflow's errors into TrackingError
            if self._has_metrics:
                try:
                    return hour_counts(self.tracking, experiment_ids, window)
                except MlflowException as error:
                    if not lacks(error, METRICS):
                        raise
                    log.info("the MLflow server has no trace metrics; counting the traces that it lists")
                    self._has_metrics = False
            return listed_counts(self.tracking.client, experiment_ids, window)

    def read(self, window: Window) -> Iterator[list[Trace | UnreadableTrace]]:
        """As `Source.read`, oldest first.

        Raises:
            TrackingError: the server lacks a call.
            MlflowException: the source does not answer.
        """
        if self.experiment_names:
            yield from read_traces(self.tracking.client, list(self.experiment_names), window)

    def moved(self, hours: Mapping[str, datetime]) -> Iterator[list[Trace | UnreadableTrace]]:
        """As `Source.moved`.

        Raises:
            MlflowException: the source does not answer.
        """
        return read_moved(self.tracking.client, hours)


def read_traces(
    client: TracingClient, experiment_ids: list[str], window: Window
) -> Iterator[list[Trace | UnreadableTrace]]:
    """All traces of the experiments that start in `window`, each once, oldest first, including those in progress.

    Raises:
        TrackingError: the server lacks a call.
        MlflowException: the source does not answer.
    """
    pages = _pages(client, experiment_ids, window)
    batches = (infos[first : first + BATCH] for infos in pages for first in range(0, len(infos), BATCH))
    yield from _all_with_spans(client, batches)


def read_moved(client: TracingClient, hours: Mapping[str, datetime]) -> Iterator[list[Trace | UnreadableTrace]]:
    """The traces (id -> hour in the archive) that the source has in another hour.

    Raises:
        MlflowException: the source does not answer.
    """
    for first in range(0, len(hours), PAGE):
        infos = _infos(client, list(hours)[first : first + PAGE])
        moved = [info for info in infos if floor_hour(from_milliseconds(info.request_time)) != hours[info.trace_id]]
        yield from _all_with_spans(client, (moved[start : start + BATCH] for start in range(0, len(moved), BATCH)))


def _infos(client: TracingClient, trace_ids: list[str]) -> list[TraceInfo]:
    try:
        return client.store.batch_get_trace_infos(trace_ids)
    except Exception as error:  # noqa: BLE001 - a malformed trace fails its batch with any error; halving finds it
        if lacks(error, BATCH_GET_INFOS):
            return [info for trace_id in trace_ids for info in _info_alone(client, trace_id)]
        if len(trace_ids) > 1:
            middle = len(trace_ids) // 2
            return _infos(client, trace_ids[:middle]) + _infos(client, trace_ids[middle:])
        return _info_alone(client, trace_ids[0])


def _info_alone(client: TracingClient, trace_id: str) -> list[TraceInfo]:
    """The info of one trace; nothing if the trace is deleted or malformed."""
    from mlflow.exceptions import MlflowException

    try:
        return [client.store.get_trace_info(trace_id)]
    except Exception as error:  # noqa: BLE001 - a malformed trace fails with any error
        client.store.search_experiments(max_results=1)  # raises if the source fails, not the trace
        if not (isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"):
            log.warning("trace %s cannot be read and stays in its hour: %s", trace_id, error)
        return []


def _pages(
    client: TracingClient, experiment_ids: list[str], window: Window
) -> Iterator[list[TraceInfo | UnreadableTrace]]:
    """The infos of the window's traces, oldest first, one page at a time.

    MLflow's page tokens are offsets: if a trace is deleted between two pages, a later one is skipped. Therefore each
    page starts at the time of the last trace seen, and tokens are used only among traces of the same millisecond.
    """
    since_ms, end_ms = to_milliseconds(window.start), to_milliseconds(window.end)
    seen: set[str] = set()
    token: str | None = None
    while True:
        page, token = _page(client, experiment_ids, since_ms, end_ms, token)
        fresh = [info for info in page if info.trace_id not in seen]
        if fresh:
            yield fresh
        if not token:
            return
        last_ms = page[-1].request_time
        if last_ms > since_ms:
            since_ms, token, seen = last_ms, None, set()
        seen.update(info.trace_id for info in page if info.request_time == since_ms)


def _page(
    client: TracingClient, experiment_ids: list[str], since_ms: int, end_ms: int, token: str | None
) -> tuple[list[TraceInfo | UnreadableTrace], str | None]:
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.utils.search_utils import SearchTraceUtils

    search: dict[str, Any] = {
        "experiment_ids": experiment_ids,
        "filter_string": f"timestamp_ms >= {since_ms} AND timestamp_ms < {end_ms}",
        "order_by": ["timestamp_ms ASC", "request_id ASC"],
    }
    try:
        return client.store.search_traces(**search, max_results=PAGE, page_token=token)
    except MlflowException as error:
        raise_if_lacking(client, error, SEARCH)
        if isinstance(client.store, SqlAlchemyStore):
            log.warning("MLflow cannot list a page of traces; listing them one by one: %s", error)
            return _page_one_by_one(client, client.store, experiment_ids, since_ms, end_ms, token)
        if type(client.store) is not RestStore:  # tokens of other servers are not offsets
            raise
        client.store.search_experiments(max_results=1)  # raises if the server fails, not the page
        log.warning("the MLflow server cannot send a page of traces; listing it in parts: %s", error)
        offset = SearchTraceUtils.parse_start_offset_from_page_token(token)
        infos = PageInParts(client.store, search, error).infos(offset, PAGE)
        return [*infos], page_token(offset + PAGE) if len(infos) == PAGE else None


def _page_one_by_one(
    client: TracingClient,
    store: SqlAlchemyStore,
    experiment_ids: list[str],
    since_ms: int,
    end_ms: int,
    token: str | None,
) -> tuple[list[TraceInfo | UnreadableTrace], str | None]:
    """A page that MLflow cannot list because it cannot parse one of the infos; the ids come from the database."""
    from mlflow.store.tracking.dbmodels.models import SqlTraceInfo
    from mlflow.utils.search_utils import SearchTraceUtils

    offset = SearchTraceUtils.parse_start_offset_from_page_token(token)
    with store.ManagedSessionMaker() as session:
        rows = (
            session.query(SqlTraceInfo.request_id, SqlTraceInfo.timestamp_ms, SqlTraceInfo.status)
            .filter(SqlTraceInfo.experiment_id.in_([int(experiment_id) for experiment_id in experiment_ids]))
            .filter(SqlTraceInfo.timestamp_ms >= since_ms, SqlTraceInfo.timestamp_ms < end_ms)
            .order_by(SqlTraceInfo.timestamp_ms, SqlTraceInfo.request_id)
            .offset(offset)
            .limit(PAGE)
            .all()
        )
    page: list[TraceInfo | UnreadableTrace] = []
    for trace_id, started_ms, status in rows:
        try:
            page.append(client.get_trace_info(trace_id))
        except Exception as error:  # noqa: BLE001 - malformed content raises any error; the next line raises if the store fails
            store.get_experiment(experiment_ids[0])
            raw = json.dumps({"trace_id": trace_id, "timestamp_ms": started_ms, "status": status})
            page.append(UnreadableTrace(trace_id, from_milliseconds(started_ms), str(error), raw))
    return page, page_token(offset + PAGE) if len(rows) == PAGE else None


def _all_with_spans(
    client: TracingClient, batches: Iterable[Sequence[TraceInfo | UnreadableTrace]]
) -> Iterator[list[Trace | UnreadableTrace]]:
    """The listed traces of each batch with their spans, in order. A server is asked for the next batches meanwhile."""
    from mlflow.store.tracking.rest_store import RestStore

    if not isinstance(client.store, RestStore):
        for listed in batches:
            yield _with_spans(client, listed, lambda listed=listed: _batch(client, listed), None)
        return
    health = ServerHealth()
    requested: deque[tuple[Sequence[TraceInfo | UnreadableTrace], Future[list[Trace]]]] = deque()
    with ThreadPoolExecutor(IN_FLIGHT, "requests") as threads:
        try:
            for listed in batches:
                requested.append((listed, threads.submit(_batch, client, listed)))
                if len(requested) > IN_FLIGHT:
                    first, answer = requested.popleft()
                    yield _with_spans(client, first, answer.result, health)
            for first, answer in requested:
                yield _with_spans(client, first, answer.result, health)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    health.check_end()


def _batch(client: TracingClient, listed: Sequence[TraceInfo | UnreadableTrace]) -> list[Trace]:
    """Those of the listed traces that MLflow sends together, from one request."""
    whole, _ = _readable(client, listed)
    # Some servers fail a whole batch for a trace whose spans are elsewhere, such as in an artifact.
    trace_ids = [info.trace_id for info in whole if info.tags.get(SPANS_LOCATION) in SENT_IN_BATCHES]
    return _repeated(client, lambda: client.store.batch_get_traces(trace_ids))


def _readable(
    client: TracingClient, listed: Sequence[TraceInfo | UnreadableTrace]
) -> tuple[list[TraceInfo], list[TraceInfo]]:
    """The readable infos of whole traces, and of traces whose assessments the server cannot send."""
    from mlflow.store.tracking.rest_store import RestStore

    readable = [info for info in listed if not isinstance(info, UnreadableTrace)]
    if not isinstance(client.store, RestStore):  # only these have infos of `PageInParts`
        return readable, []
    whole = [info for info in readable if UNREADABLE_VALUE not in info.trace_metadata]
    return whole, [info for info in readable if UNREADABLE_VALUE in info.trace_metadata]


def _with_spans(
    client: TracingClient,
    listed: Sequence[TraceInfo | UnreadableTrace],
    batch: Callable[[], list[Trace]],
    health: ServerHealth | None,
) -> list[Trace | UnreadableTrace]:
    """The listed traces with their spans, from `batch` or one by one; `health` is that of a server."""
    whole, marked = _readable(client, listed)
    partial = [trace_without_assessments(cast("RestStore", client.store), info) for info in marked]
    try:
        complete = {trace.info.trace_id: trace for trace in batch()}
    except Exception as error:  # noqa: BLE001 - a malformed trace fails its batch with any error
        raise_if_lacking(client, error, BATCH_GET)
        log.warning("MLflow cannot read a batch of %d traces; reading them one by one: %s", len(whole), error)
        complete = {}
    traces: list[Trace | UnreadableTrace | None] = []
    for info in whole:
        trace = complete.get(info.trace_id) or _with_spans_alone(client, info)
        if health:
            health.note(trace)
        traces.append(trace)
    unlisted = [trace for trace in listed if isinstance(trace, UnreadableTrace)]
    return [trace for trace in traces if trace is not None] + partial + unlisted


def _with_spans_alone(client: TracingClient, info: TraceInfo) -> Trace | UnreadableTrace | None:
    """A trace missing from its batch: in progress, with its spans in an artifact, malformed, or deleted (None)."""
    from mlflow.exceptions import MlflowException

    try:
        return _repeated(client, lambda: _alone(client, info))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        reason = str(error)
    except _NoSpansError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - malformed content raises any error
        reason = f"{type(error).__name__}: {error}"
    client.get_trace_info(info.trace_id)  # raises if the source fails, not the trace
    return UnreadableTrace.of(info, reason)


class _NoSpansError(Exception):
    """MLflow sends no spans of a trace that must have some."""


def _alone(client: TracingClient, info: TraceInfo) -> Trace:
    """The trace with its spans; raises whatever its content, MLflow or the server lead to."""
    from mlflow.entities import Trace, TraceData

    if info.tags.get(SPANS_LOCATION) == "TRACKING_STORE":
        trace = _from_the_store(client, info.trace_id)
    elif info.state == "IN_PROGRESS":  # clients write artifacts when a trace ends
        trace = None
    else:
        with global_tracking_uri(client.tracking_uri):  # MLflow looks there for the server that has the artifacts
            trace = _from_its_file(client, info.trace_id)
    if trace and trace.data.spans:
        return trace
    if info.state == "IN_PROGRESS":
        return Trace(info, TraceData(spans=[]))
    raise _NoSpansError("its spans are missing or corrupt")


def _repeated(client: TracingClient, call: Callable[[], T]) -> T:
    """The result of `call`, repeated if a server's answer cannot be understood, as a proxy may have cut or replaced it.

    MLflow's client itself repeats calls that are not answered.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.rest_store import RestStore

    if not isinstance(client.store, RestStore):
        return call()
    stop = stop_after_attempt(ATTEMPTS)
    return retried(call, lambda error: not isinstance(error, MlflowException), stop, first_wait_s=0.2, longest_wait_s=2)


def _from_the_store(client: TracingClient, trace_id: str) -> Trace | None:
    """A trace with the spans that have arrived; with all or none from a server that sends no partial ones."""
    from mlflow.exceptions import MlflowException

    try:
        return client.store.get_trace(trace_id, allow_partial=True)
    except MlflowException as error:
        if not lacks(error, GET):
            raise
    return next(iter(client.store.batch_get_traces([trace_id])), None)


def _from_its_file(client: TracingClient, trace_id: str) -> Trace | None:
    """A trace whose spans are in an artifact; None if they are missing or corrupt."""
    from mlflow.exceptions import MlflowException

    try:
        return next(iter(client.batch_get_traces([trace_id])), None)
    except MlflowException as error:
        if not lacks(error, BATCH_GET_INFOS):
            raise
    try:
        return client.get_trace(trace_id)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":  # MLflow's code for spans that are missing or corrupt
            raise
    return None


def listed_counts(client: TracingClient, experiment_ids: list[str], window: Window) -> dict[datetime, HourCounts]:
    """Hour counts of the traces that the server lists, equal to those from its trace metrics.

    Raises:
        TrackingError: the server lacks a call.
        MlflowException: the source does not answer.
    """
    from mlflow.store.tracking.utils.trace_analytics import assessment_aggregate

    traces, in_progress, assessments = Counter[datetime](), Counter[datetime](), Counter[datetime]()
    values = defaultdict[datetime, list[float]](list)
    durations = defaultdict[datetime, defaultdict[str, list[float]]](lambda: defaultdict(list))
    for info in (info for page in _pages(client, experiment_ids, window) for info in page):
        hour = floor_hour(from_milliseconds(info.request_time))
        traces[hour] += 1
        if isinstance(info, UnreadableTrace):
            continue
        in_progress[hour] += info.state == "IN_PROGRESS"
        if info.state in ENDED and info.execution_duration is not None:
            durations[hour][info.state].append(info.execution_duration)
        for assessment in info.assessments:
            if assessment.valid is not False:  # MLflow's metrics exclude overridden ones
                assessments[hour] += 1
                value, _ = assessment_aggregate(getattr(assessment, "value", None))
                values[hour] += [] if value is None else [value]
    return {
        hour: HourCounts(
            number,
            in_progress[hour],
            assessments[hour],
            _mark(
                fmean(values[hour]) if values[hour] else None,
                {status: fmean(found) for status, found in durations[hour].items()},
            ),
        )
        for hour, number in traces.items()
    }


def _mark(mean: float | None, durations: Mapping[str, float]) -> str:
    """The mark of an hour: the mean value of its assessments, and the mean duration of its traces by state.

    Nine digits, because databases may sum in any order.
    """
    lasting = [f"{status} {durations[status]:.9g} ms" for status in ENDED if durations.get(status) is not None]
    return "; ".join([*([] if mean is None else [f"mean {mean:.9g}"]), *lasting])


def hour_counts(tracking: TrackingResource, experiment_ids: list[str], window: Window) -> dict[datetime, HourCounts]:
    """Hour counts from MLflow's trace metrics: a database uses its indexes, a server sends no traces.

    Raises:
        MlflowException: the server has no trace metrics, or does not answer.
        TrackingError: the store cannot be used.
    """
    counts: dict[datetime, HourCounts] = {}
    start = window.start
    while start < window.end:
        part = Window(start, min(start + METRIC_SLICE, window.end))
        counts.update(_counts_of_slice(tracking, experiment_ids, part))
        start = part.end
    return counts


def _counts_of_slice(tracking: TrackingResource, experiment_ids: list[str], part: Window) -> dict[datetime, HourCounts]:
    from mlflow.entities.trace_metrics import AggregationType, MetricViewType

    traces, in_progress = dict[datetime, int](), dict[datetime, int]()
    for point in _metric(tracking, experiment_ids, part, MetricViewType.TRACES, "trace_count", ["trace_status"]):
        hour, number = _hour_of(point), round(point.values["COUNT"])
        traces[hour] = traces.get(hour, 0) + number
        if point.dimensions["trace_status"] == "IN_PROGRESS":
            in_progress[hour] = number
    view = MetricViewType.ASSESSMENTS
    assessments = {
        _hour_of(point): round(point.values["COUNT"])
        for point in _metric(tracking, experiment_ids, part, view, "assessment_count")
    }
    # MLflow excludes overridden assessments.
    means = {
        _hour_of(point): point.values["AVG"]
        for point in _metric(tracking, experiment_ids, part, view, "assessment_value", aggregation=AggregationType.AVG)
    }
    durations = defaultdict[datetime, dict[str, float]](dict)
    for status in ENDED:
        of_status = [f"trace.status = '{status}'"]
        for point in _metric(
            tracking, experiment_ids, part, MetricViewType.TRACES, "latency", [], AggregationType.AVG, of_status
        ):
            durations[_hour_of(point)][status] = point.values["AVG"]
    return {
        hour: HourCounts(
            traces.get(hour, 0),
            in_progress.get(hour, 0),
            assessments.get(hour, 0),
            _mark(means.get(hour), durations[hour]),
        )
        for hour in traces.keys() | assessments.keys()
    }


def _metric(
    tracking: TrackingResource,
    experiment_ids: list[str],
    part: Window,
    view: Any,
    metric: str,
    dimensions: list[str] | None = None,
    aggregation: Any = "COUNT",
    filters: list[str] | None = None,
) -> list[MetricDataPoint]:
    from mlflow.entities.trace_metrics import AggregationType, MetricAggregation

    points = tracking.client.store.query_trace_metrics(
        experiment_ids=experiment_ids,
        view_type=view,
        metric_name=metric,
        aggregations=[MetricAggregation(AggregationType(aggregation))],
        dimensions=dimensions,
        filters=filters,
        time_interval_seconds=3600,
        start_time_ms=to_milliseconds(part.start),
        end_time_ms=to_milliseconds(part.end) - 1,  # MLflow includes the end
        max_results=METRIC_POINTS,
    )
    if len(points) >= METRIC_POINTS:
        raise TrackingError(f"MLflow returned {len(points)} points for {metric} of {part}, and there may be more")
    return list(points)


def _hour_of(point: MetricDataPoint) -> datetime:
    return datetime.fromisoformat(point.dimensions["time_bucket"])
