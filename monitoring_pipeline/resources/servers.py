"""MLflow servers of other versions: which calls they lack, and the one line that says so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.tracking import TrackingResource, errors_of, impatience
from monitoring_pipeline.settings import without_password

if TYPE_CHECKING:
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.tracing.client import TracingClient

    Endpoint: TypeAlias = str

NEEDED = "3.6"  # the oldest server that sends traces with their spans; docs/deployment.md lists the servers tried
TRACES = "/api/3.0/mlflow/traces"
METRICS, SEARCH, GET = f"{TRACES}/metrics", f"{TRACES}/search", f"{TRACES}/get"
BATCH_GET, BATCH_GET_INFOS = f"{TRACES}/batchGet", f"{TRACES}/batchGetInfos"
NO_ENDPOINT = {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}
ANSWER_S = 4  # how long a server may take for its version, which needs no database
A_TRACE = "tr-00000000000000000000000000000000"


def lacks(error: Exception, endpoint: Endpoint) -> bool:
    """Return whether the server refused a call of `endpoint` because it does not have it."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    return (
        error.error_code in NO_ENDPOINT
        or f"{endpoint} failed with error code 405 " in error.message  # for which MLflow has no error code
        # Where older servers have only /traces/{trace_id}, the last word of the endpoint is an id to them.
        or f"'{endpoint.rsplit('/', 1)[-1]}' not found" in error.message
    )


def raise_if_lacking(client: TracingClient, error: Exception, endpoint: Endpoint) -> None:
    """Do nothing if the error has another reason than an endpoint that the server lacks.

    Raises:
        TrackingError: the server lacks the endpoint; names the server's version and the one needed.
    """
    if lacks(error, endpoint):
        raise TrackingError(
            f"the MLflow server at {without_password(client.tracking_uri)} has {_version(client)} and lacks "
            f"{endpoint}; upgrade it to MLflow {NEEDED} or newer, or use another [archive] source"
        ) from None


def check_server(tracking: TrackingResource) -> None:
    """Return if `tracking` is a database, or a server that has all that the source `mlflow` needs.

    Raises:
        TrackingError: the server does not answer within seconds, or it lacks a call.
    """
    from mlflow.store.tracking.rest_store import RestStore

    client = tracking.client
    if type(client.store) is not RestStore:  # Databricks' stores are derived from it
        return
    with errors_of(tracking.tracking_uri), impatience():
        _answer_of_version(client.store)
        try:
            client.store.batch_get_traces([A_TRACE])
        except Exception as error:
            raise_if_lacking(client, error, BATCH_GET)
            raise


def _version(client: TracingClient) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.rest_store import RestStore

    try:
        answer = _answer_of_version(client.store) if isinstance(client.store, RestStore) else ""
    except MlflowException:
        answer = ""
    return f"version {answer}" if re.fullmatch(r"\d+(\.\w+)+", answer) else "an unknown version"


def _answer_of_version(store: RestStore) -> str:
    from mlflow.utils.rest_utils import http_request

    response = http_request(
        store.get_host_creds(), "/version", "GET", timeout=ANSWER_S, max_retries=0, raise_on_status=False
    )
    assert response is not None  # only of a call that MLflow makes in the background
    return response.text.strip()
