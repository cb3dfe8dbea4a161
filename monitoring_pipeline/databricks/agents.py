"""Databricks' own client, MLflow's calls of Databricks, and the REST API under them: in a line when they fail."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from monitoring_pipeline.compat.mlflow import same_registry
from monitoring_pipeline.databricks.workspace import RETRY_SECONDS, connect, refusal
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.tracking import without_request_logs
from monitoring_pipeline.settings import without_password

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

DATABRICKS = "databricks"  # MLflow's tracking URI of the workspace that the environment names
MANAGED_EVALS = "/api/2.0/managed-evals"
REASON_CHARACTERS = 300
T = TypeVar("T")


@contextmanager
def at_databricks() -> Iterator[None]:
    """Within the block MLflow and Databricks' own client talk to the workspace that the environment names.

    Raises:
        MonitoringError: databricks-agents is not installed; and, in a line without credentials, instead of all that is
            raised within the block.
    """
    from monitoring_pipeline.resources.tracking import global_tracking_uri

    require_agents()
    without_request_logs()
    try:
        # It prints what it does.
        with (
            global_tracking_uri(DATABRICKS),
            same_registry(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            yield
    except MonitoringError:
        raise
    except Exception as error:  # noqa: BLE001 - the clients, the SDK and MLflow raise errors of their own each
        raise MonitoringError(f"Databricks request failed: {without_secrets(error)}") from None


def require_agents() -> None:
    """Refuse to go on without Databricks' own client.

    Raises:
        MonitoringError: it is not installed; the message says what to install.
    """
    try:
        import databricks.agents.scorers  # noqa: F401
    except ImportError as error:
        raise MonitoringError(
            "managed scorers and trace archival need the package databricks-agents; install it by "
            f"pip install 'monitoring-pipeline[databricks]' ({error})"
        ) from None


def without_secrets(error: BaseException) -> str:
    """The error on one line. Where the SDK cannot parse an answer, its error quotes the request with its token."""
    text = " ".join(str(error).partition("Request log:")[0].split())
    return f"{type(error).__name__}: {without_password(text)[:REASON_CHARACTERS]}"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of Databricks' client stands for; it puts some errors into others."""
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)
        if response is not None:  # a response with an error is false
            return int(response.status_code)
    return None


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns, repeated for some minutes where there are too many requests, a 5xx answer or none at all."""
    retrying = Retrying(
        retry=retry_if_exception(is_worth_repeating),
        wait=wait_random_exponential(multiplier=0.5, max=30),
        stop=stop_after_delay(RETRY_SECONDS),
        reraise=True,
    )
    return retrying(call)


def is_worth_repeating(error: BaseException) -> bool:
    import requests

    status = status_of(error)
    return isinstance(error, requests.ConnectionError | requests.Timeout) or status == 429 or (status or 0) >= 500


def asked(client: WorkspaceClient, method: str, path: str, **named: Any) -> dict[str, Any]:
    """The answer to a request; the SDK repeats it where that may help.

    Raises:
        MonitoringError: the workspace refuses, in a line.
    """
    try:
        return client.api_client.do(method, f"{MANAGED_EVALS}/{path}", **named)  # type: ignore[return-value]
    except (OSError, TimeoutError) as error:  # as all errors of the SDK are
        raise refusal(client.config.host, error) from None


def monitor_of(experiment_id: str) -> dict[str, Any]:
    """What Databricks says of the experiment's monitoring: trace_archive_table and current_backfill_job_id, if any.

    Raises:
        MonitoringError: the workspace refuses.
    """
    found = asked(connect(), "POST", "monitors", body={"experiment_id": experiment_id}).get("monitor_infos") or [{}]
    return {**(found[0].get("monitor") or {}), "current_backfill_job_id": found[0].get("current_backfill_job_id")}
