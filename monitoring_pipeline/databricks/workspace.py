"""REST client of the Databricks workspace that the environment variables name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenacity import stop_after_delay

from monitoring_pipeline.errors import REASON_CHARACTERS, MonitoringError, one_line
from monitoring_pipeline.retries import retried

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

CREDENTIALS = "DATABRICKS_HOST and DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
RETRY_SECONDS = 300


def connect() -> WorkspaceClient:
    """Return a client of the workspace, with the credentials that the Databricks SDK finds in the environment.

    Requests are retried for some minutes on transient errors (see `is_passing`); the SDK alone does not retry most 5xx
    responses. Errors contain no credentials.

    Raises:
        MonitoringError: there are no credentials.
    """
    from databricks.sdk import WorkspaceClient

    try:
        client = WorkspaceClient()
    except (ValueError, OSError):  # the original message lists every place that was searched
        raise MonitoringError(f"no credentials for Databricks; set {CREDENTIALS}") from None
    client.api_client.do = _patient(client.api_client.do)
    return client


def is_passing(error: BaseException) -> bool:
    """Return whether the error is transient: too many requests, a 5xx response, or no response."""
    from databricks.sdk.errors import DeadlineExceeded, InternalError, TemporarilyUnavailable, TooManyRequests
    from databricks.sdk.errors.base import DatabricksError

    passing = (InternalError, TemporarilyUnavailable, DeadlineExceeded, TooManyRequests, TimeoutError)
    return isinstance(error, passing) or type(error) is DatabricksError  # the SDK has no class for 502


def refusal(host: str, error: Exception) -> MonitoringError:
    """Return the error as one line with a fix."""
    from databricks.sdk.errors import PermissionDenied, Unauthenticated

    reason = one_line(error)[:REASON_CHARACTERS] or type(error).__name__
    if isinstance(error, PermissionDenied | Unauthenticated):
        return MonitoringError(f"Databricks at {host} denies access: {reason}; check {CREDENTIALS}, and permissions")
    return MonitoringError(f"Databricks request to {host} failed: {type(error).__name__}: {reason}")


def _patient(do: Callable[..., Any]) -> Callable[..., Any]:
    """`do`, retried on transient errors; a stream to send is rewound before each attempt."""
    from databricks.sdk.errors.base import DatabricksError

    @functools.wraps(do)
    def patient(*arguments: Any, data: Any = None, **named: Any) -> Any:
        def attempt() -> Any:
            if data is not None:
                data.seek(0)
            return do(*arguments, data=data, **named)

        try:
            return retried(attempt, is_passing, stop_after_delay(RETRY_SECONDS))
        except DatabricksError as error:
            # If the SDK cannot parse a response, its error quotes the request, including the header with the token.
            error.args = (str(error).partition("Request log:")[0].strip(),)
            raise

    return patient
