"""Calls of the databricks-agents client, of MLflow at Databricks, and of the REST API, with one-line errors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import stop_after_delay

from monitoring_pipeline.compat.mlflow import same_registry
from monitoring_pipeline.databricks.workspace import RETRY_SECONDS, connect, refusal
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.tracking import in_a_line, without_request_logs
from monitoring_pipeline.retries import retried

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

DATABRICKS = "databricks"  # MLflow's tracking URI of the workspace that the environment names
MANAGED_EVALS = "/api/2.0/managed-evals"
T = TypeVar("T")


@contextmanager
def at_databricks() -> Iterator[None]:
    """Connect MLflow and databricks-agents to the workspace of the environment within the block.

    Raises:
        MonitoringError: databricks-agents is not installed. Errors within the block are also raised as MonitoringError,
            on one line and without credentials.
    """
    from monitoring_pipeline.resources.tracking import global_tracking_uri

    require_agents()
    without_request_logs()
    try:
        # The client prints its progress.
        with (
            global_tracking_uri(DATABRICKS),
            same_registry(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield
    except MonitoringError:
        raise
    except Exception as error:  # noqa: BLE001 - the clients, the SDK and MLflow have no common base error
        raise MonitoringError(f"Databricks request failed: {in_a_line(error)}") from None


def require_agents() -> None:
    """Check that databricks-agents is installed.

    Raises:
        MonitoringError: it is not installed; the message has the command to install it.
    """
    try:
        import databricks.agents.scorers  # noqa: F401
    except ImportError as error:
        raise MonitoringError(
            "managed scorers and trace archival need the package databricks-agents; "
            f"run pip install 'monitoring-pipeline[databricks]' ({error})"
        ) from None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error of the Databricks client, which wraps some errors in others; or None."""
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)
        if response is not None:  # an error response is falsy
            return int(response.status_code)
    return None


def patiently(call: Callable[[], T]) -> T:
    """Return the result of `call`, retried for some minutes on "too many requests", a 5xx response or no response."""
    return retried(call, is_worth_repeating, stop_after_delay(RETRY_SECONDS))


def is_worth_repeating(error: BaseException) -> bool:
    import requests

    status = status_of(error)
    return isinstance(error, requests.ConnectionError | requests.Timeout) or status == 429 or (status or 0) >= 500


def send(client: WorkspaceClient, method: str, path: str, **named: Any) -> dict[str, Any]:
    """Return the response of the workspace; the SDK retries transient errors.

    Raises:
        MonitoringError: the request failed; a one-line reason.
    """
    try:
        return client.api_client.do(method, f"{MANAGED_EVALS}/{path}", **named)  # type: ignore[return-value]
    except (OSError, TimeoutError) as error:  # the base classes of all SDK errors
        raise refusal(client.config.host, error) from None


def monitor_of(experiment_id: str) -> dict[str, Any]:
    """Return Databricks' monitor of the experiment, with trace_archive_table and current_backfill_job_id, if any.

    Raises:
        MonitoringError: the request failed.
    """
    found = send(connect(), "POST", "monitors", body={"experiment_id": experiment_id}).get("monitor_infos") or [{}]
    return {**(found[0].get("monitor") or {}), "current_backfill_job_id": found[0].get("current_backfill_job_id")}
