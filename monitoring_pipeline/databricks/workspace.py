"""The Databricks workspace that the environment names, through its REST API."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from monitoring_pipeline.errors import MonitoringError

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

CREDENTIALS = "DATABRICKS_HOST and DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
RETRY_SECONDS = 300
REASON_CHARACTERS = 300


def connect() -> WorkspaceClient:
    """A client of the workspace, with the credentials that Databricks' own tools find in the environment.

    Its requests are repeated for some minutes on all that `is_passing`: the SDK by itself leaves out most 5xx answers.
    None of its errors holds a credential.

    Raises:
        MonitoringError: there are no credentials.
    """
    from databricks.sdk import WorkspaceClient

    try:
        client = WorkspaceClient()
    except (ValueError, OSError):  # the message lists everything that was looked for
        raise MonitoringError(f"no credentials for Databricks; set {CREDENTIALS}") from None
    client.api_client.do = _patient(client.api_client.do)
    return client


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed later: too many requests, a 5xx answer, or none at all."""
    from databricks.sdk.errors import DeadlineExceeded, InternalError, TemporarilyUnavailable, TooManyRequests
    from databricks.sdk.errors.base import DatabricksError

    passing = (InternalError, TemporarilyUnavailable, DeadlineExceeded, TooManyRequests, TimeoutError)
    return isinstance(error, passing) or type(error) is DatabricksError  # the latter where the SDK has no name: 502


def refusal(host: str, error: Exception) -> MonitoringError:
    """The error as a line that says what to do."""
    from databricks.sdk.errors import PermissionDenied, Unauthenticated

    reason = " ".join(str(error).split())[:REASON_CHARACTERS] or type(error).__name__
    if isinstance(error, PermissionDenied | Unauthenticated):
        return MonitoringError(f"Databricks at {host} refuses: {reason}; check {CREDENTIALS}, and their permissions")
    return MonitoringError(f"Databricks request to {host} failed: {type(error).__name__}: {reason}")


def _patient(do: Callable[..., Any]) -> Callable[..., Any]:
    """`do`, repeated where the error is passing; a stream that it sends is rewound."""
    from databricks.sdk.errors.base import DatabricksError

    retrying = Retrying(
        retry=retry_if_exception(is_passing),
        wait=wait_random_exponential(multiplier=0.5, max=30),
        stop=stop_after_delay(RETRY_SECONDS),
        reraise=True,
    )

    @functools.wraps(do)
    def patient(*arguments: Any, data: Any = None, **named: Any) -> Any:
        def attempt() -> Any:
            if data is not None:
                data.seek(0)
            return do(*arguments, data=data, **named)

        try:
            return retrying(attempt)
        except DatabricksError as error:
            # Where the SDK cannot parse an answer, its error quotes the request, with the header that holds the token.
            error.args = (str(error).partition("Request log:")[0].strip(),)
            raise

    return patient
