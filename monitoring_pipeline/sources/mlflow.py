"""Traces read from an MLflow store or server, through MLflow's own client."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from monitoring_pipeline.traces.flatten import UnreadableTrace
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds, to_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace, TraceInfo
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracing.client import TracingClient

PAGE = 500  # what a server gives at most
BATCH = 100

log = logging.getLogger(__name__)


def read_traces(
    client: TracingClient, experiment_ids: list[str], window: Window
) -> Iterator[list[Trace | UnreadableTrace]]:
    """All traces of the experiments that start in `window`, each once, oldest first, in batches; unfinished ones too.

    Raises:
        MlflowException: the source does not answer.
    """
    for infos in _pages(client, experiment_ids, window):
        for first in range(0, len(infos), BATCH):
            yield _with_spans(client, infos[first : first + BATCH])


def read_moved(client: TracingClient, hours: Mapping[str, datetime]) -> Iterator[list[Trace | UnreadableTrace]]:
    """Those of the traces (id -> hour) that the source has in another hour than that, in batches.

    Raises:
        MlflowException: the source does not answer.
    """
    for first in range(0, len(hours), PAGE):
        infos = _infos(client, list(hours)[first : first + PAGE])
        moved = [info for info in infos if floor_hour(from_milliseconds(info.request_time)) != hours[info.trace_id]]
        for start in range(0, len(moved), BATCH):
            yield _with_spans(client, moved[start : start + BATCH])


def _infos(client: TracingClient, trace_ids: list[str]) -> list[TraceInfo]:
    from mlflow.exceptions import MlflowException

    try:
        return client.store.batch_get_trace_infos(trace_ids)
    except Exception as error:  # noqa: BLE001 - one malformed trace fails its batch, in any way, and is found by halving
        if len(trace_ids) > 1:
            middle = len(trace_ids) // 2
            return _infos(client, trace_ids[:middle]) + _infos(client, trace_ids[middle:])
        client.store.search_experiments(max_results=1)  # raises when it is the source that fails, not the trace
        if not (isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"):
            log.warning("trace %s stays in its hour, as it cannot be read: %s", trace_ids[0], error)
        return []


def _pages(
    client: TracingClient, experiment_ids: list[str], window: Window
) -> Iterator[list[TraceInfo | UnreadableTrace]]:
    """The infos of the window, in the order of time.

    MLflow's page tokens are offsets, which skip a trace when an earlier one is deleted meanwhile. So each page starts
    at the time of the last trace seen, and a token is used only among traces of one millisecond.
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
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    try:
        return client.store.search_traces(
            experiment_ids=experiment_ids,
            filter_string=f"timestamp_ms >= {since_ms} AND timestamp_ms < {end_ms}",
            max_results=PAGE,
            order_by=["timestamp_ms ASC", "request_id ASC"],
            page_token=token,
        )
    except MlflowException as error:
        if not isinstance(client.store, SqlAlchemyStore):
            raise
        log.warning("listing traces one by one, as listing them together failed: %s", error)
        return _page_one_by_one(client, client.store, experiment_ids, since_ms, end_ms, token)


def _page_one_by_one(
    client: TracingClient,
    store: SqlAlchemyStore,
    experiment_ids: list[str],
    since_ms: int,
    end_ms: int,
    token: str | None,
) -> tuple[list[TraceInfo | UnreadableTrace], str | None]:
    """A page that MLflow cannot list, as it cannot parse one of its infos: the database gives the ids unparsed."""
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
        except Exception as error:  # noqa: BLE001 - malformed content raises anything; the probe tells it from an outage
            store.get_experiment(experiment_ids[0])
            raw = json.dumps({"trace_id": trace_id, "timestamp_ms": started_ms, "status": status})
            page.append(UnreadableTrace(trace_id, from_milliseconds(started_ms), str(error), raw))
    next_token = SearchTraceUtils.create_page_token(offset + PAGE).decode() if len(rows) == PAGE else None
    return page, next_token


def _with_spans(client: TracingClient, listed: Sequence[TraceInfo | UnreadableTrace]) -> list[Trace | UnreadableTrace]:
    infos = [info for info in listed if not isinstance(info, UnreadableTrace)]
    trace_ids = [info.trace_id for info in infos]
    try:
        complete = {trace.info.trace_id: trace for trace in client.store.batch_get_traces(trace_ids)}
    except Exception as error:  # noqa: BLE001 - one malformed trace fails its batch, in any way; each is tried alone
        log.warning("reading %d traces one by one, as the batch failed: %s", len(infos), error)
        complete = {}
    traces = [complete.get(info.trace_id) or _alone(client, info) for info in infos]
    unlisted = [trace for trace in listed if isinstance(trace, UnreadableTrace)]
    return [trace for trace in traces if trace is not None] + unlisted


def _alone(client: TracingClient, info: TraceInfo) -> Trace | UnreadableTrace | None:
    """A trace that batches leave out: one still in progress, kept as an artifact, malformed, or deleted (None)."""
    from mlflow.entities import Trace, TraceData
    from mlflow.exceptions import MlflowException

    try:
        if info.tags.get("mlflow.trace.spansLocation") == "TRACKING_STORE":
            trace = client.store.get_trace(info.trace_id, allow_partial=True)
        else:
            trace = next(iter(client.batch_get_traces([info.trace_id])), None)
        if trace and trace.data.spans:
            return trace
        if info.state == "IN_PROGRESS":
            return Trace(info, TraceData(spans=[]))
        reason = "its spans are missing or corrupt"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - malformed content raises anything; the probe below tells it from an outage
        reason = f"{type(error).__name__}: {error}"
    client.get_trace_info(info.trace_id)  # raises when it is the source that fails, not the trace
    started = from_milliseconds(info.request_time)
    return UnreadableTrace(info.trace_id, started, reason, repr(info))
