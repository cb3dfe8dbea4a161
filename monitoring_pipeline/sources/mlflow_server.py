"""Traces that an MLflow server cannot send: one of them, for example with NaN feedback, makes it fail a whole page."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any, NoReturn

from monitoring_pipeline.errors import TrackingError, one_line
from monitoring_pipeline.resources.tracking import impatience
from monitoring_pipeline.traces.flatten import UNREADABLE_VALUE, UnreadableTrace

if TYPE_CHECKING:
    from mlflow.entities import Trace, TraceInfo
    from mlflow.store.tracking.rest_store import RestStore

LIST_V2, SPANS = "/api/2.0/mlflow/traces", "/ajax-api/2.0/mlflow/get-trace-artifact"
ALONE_ATTEMPTS = 3  # for a single trace, so that a passing fault of the server is not taken for one of the trace
MOST_ON_A_PAGE = 20  # traces that a server may fail to send before it counts as failing altogether
MOST_UNSENT, SEVERAL = 20, 3  # traces without spans
ASSESSMENTS = "assessments not sent by the server"

log = logging.getLogger(__name__)


class ServerHealth:
    """Tells a server that fails to send spans from single traces that cannot be sent, within one read.

    A failing server fails the read, so that none of its traces goes into quarantine and the hour is asked for again.
    """

    def __init__(self) -> None:
        self._sent, self._failed, self._reason = 0, 0, ""

    def note(self, trace: Trace | UnreadableTrace | None) -> None:
        """Count the server's answer for one trace; None means that the trace has been deleted meanwhile.

        Raises:
            TrackingError: the server has failed on more than `MOST_UNSENT` traces, and on most of them.
        """
        if isinstance(trace, UnreadableTrace):
            self._failed, self._reason = self._failed + 1, trace.reason
        elif trace is not None:
            self._sent += 1
        if self._failed > max(MOST_UNSENT, self._sent):
            self._fail()

    def check_end(self) -> None:
        """Check the server at the end of the read.

        Raises:
            TrackingError: it has sent none of several traces.
        """
        if not self._sent and self._failed >= SEVERAL:
            self._fail()

    def _fail(self) -> NoReturn:
        raise TrackingError(
            f"the MLflow server did not send the spans of {self._failed} of {self._failed + self._sent} traces "
            f"({one_line(self._reason)}); the hour is asked for again"
        )


class PageInParts:
    """Lists a page of `search_traces` in parts, because the server failed on the page with `error`."""

    def __init__(self, store: RestStore, search: dict[str, Any], error: Exception) -> None:
        self._store, self._search, self._error = store, search, error
        self._failed = 0

    def infos(self, offset: int, count: int) -> list[TraceInfo]:
        """The infos of `count` traces from `offset` on, fewer at the end.

        The traces that the server cannot send have an info without assessments, and the mark `UNREADABLE_VALUE`.

        Raises:
            MlflowException: the server fails on more than `MOST_ON_A_PAGE` traces, or does not even list them.
        """
        from mlflow.exceptions import MlflowException

        attempts = 1 if count > 1 else ALONE_ATTEMPTS
        for attempt in range(attempts):
            time.sleep(attempt)
            try:
                with impatience():
                    part = self._store.search_traces(**self._search, max_results=count, page_token=page_token(offset))
                return list(part[0])
            except MlflowException as error:
                log.debug("%d traces from %d on: %s", count, offset, error)
        if count > 1:
            first = self.infos(offset, count // 2)
            is_end = len(first) < count // 2
            return first if is_end else first + self.infos(offset + count // 2, count - count // 2)
        self._failed += 1
        if self._failed > MOST_ON_A_PAGE:
            raise self._error
        return self._without_assessments(offset)

    def _without_assessments(self, offset: int) -> list[TraceInfo]:
        """The info of the trace at `offset` as MLflow 2 listed it, which has no assessments; empty after the last."""
        parameters = {
            "experiment_ids": self._search["experiment_ids"],
            "filter": self._search["filter_string"],
            "order_by": self._search["order_by"],
            "max_results": 1,
            "page_token": page_token(offset),
        }
        try:
            listed = json.loads(_get(self._store, LIST_V2, parameters)).get("traces", [])
        except Exception:  # noqa: BLE001 - a server without this list may answer anything; then its own error counts
            raise self._error from None
        for trace in listed:
            log.warning("the MLflow server cannot send the assessments of trace %s", trace["request_id"])
        return [_info(trace) for trace in listed]


def page_token(offset: int) -> str | None:
    """The token of the page that begins with the trace at `offset`."""
    from mlflow.utils.search_utils import SearchTraceUtils

    return SearchTraceUtils.create_page_token(offset).decode() if offset else None


def trace_without_assessments(store: RestStore, info: TraceInfo) -> Trace | UnreadableTrace:
    """The trace of an info from `PageInParts` that has the mark, with its spans."""
    from mlflow.entities import Trace, TraceData

    try:
        return Trace(info, TraceData.from_dict(json.loads(_get(store, SPANS, {"request_id": info.trace_id}))))
    except Exception as error:  # noqa: BLE001 - malformed content raises any error
        store.search_experiments(max_results=1)  # raises if the server fails, not the trace
        return UnreadableTrace.of(info, f"{type(error).__name__}: {error}")


def _info(trace: dict[str, Any]) -> TraceInfo:
    from mlflow.entities import TraceInfo, TraceState
    from mlflow.entities.trace_location import TraceLocation

    metadata, tags = (
        {entry["key"]: entry.get("value", "") for entry in trace.get(name, [])} for name in ("request_metadata", "tags")
    )
    return TraceInfo(
        trace_id=trace["request_id"],
        trace_location=TraceLocation.from_experiment_id(trace["experiment_id"]),
        request_time=int(trace["timestamp_ms"]),
        state=TraceState(trace.get("status", "STATE_UNSPECIFIED")),
        execution_duration=int(trace["execution_time_ms"]) if trace.get("execution_time_ms") else None,
        trace_metadata={**metadata, UNREADABLE_VALUE: ASSESSMENTS},
        tags=tags,
    )


def _get(store: RestStore, endpoint: str, parameters: dict[str, Any]) -> str:
    from mlflow.utils.rest_utils import http_request

    with impatience():
        response = http_request(store.get_host_creds(), endpoint, "GET", params=parameters)
    assert response is not None  # only of a call that MLflow makes in the background
    response.raise_for_status()
    return response.text
