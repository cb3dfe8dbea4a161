"""The monitored MLflow store or server: its clients, experiments, and one-line errors."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from monitoring_pipeline.compat.mlflow import tracking_uri_within
from monitoring_pipeline.errors import REASON_CHARACTERS, TrackingError, one_line
from monitoring_pipeline.resources.network import why_unreachable
from monitoring_pipeline.resources.schema import check_not_newer
from monitoring_pipeline.settings import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

DEFAULT_PORTS = {"http": 80, "https": 443}


class TrackingResource(dg.ConfigurableResource):
    """The MLflow store or server and its monitored experiments."""

    tracking_uri: str = Field(description="sqlite:///…, postgresql://…, http(s)://… or databricks")
    experiments: list[str] = Field(default=[], description="names of the experiments; empty: all")

    @property
    def client(self) -> TracingClient:
        """MLflow's tracing client for the store.

        Raises:
            TrackingError: the file does not exist, nothing listens at the address, or it is not an MLflow store; or its
                database is newer than the installed MLflow.
        """
        return _client(self.tracking_uri)

    @contextmanager
    def calls(self) -> Iterator[MlflowClient]:
        """Yield MLflow's client for the store.

        Raises:
            TrackingError: see `client`; also for any error within the `with` block.
        """
        from mlflow import MlflowClient

        _ = self.client
        with errors_of(self.tracking_uri):
            # Without a registry_uri, MLflow looks for one in this process's Spark session.
            yield MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)

    def experiment_names(self) -> dict[str, str]:
        """Return the monitored experiments, id -> name.

        Raises:
            TrackingError: the store cannot be read, or no experiment has one of the names.
        """
        with self.calls() as client:
            if not self.experiments:
                return _all_experiments(client)
            found = {name: client.get_experiment_by_name(name) for name in self.experiments}
            missing = [name for name, experiment in found.items() if experiment is None]
            known = sorted(_all_experiments(client).values()) if missing else []
        if missing:
            names, others = (", ".join(map(repr, names)) for names in (missing, known))
            store = without_password(self.tracking_uri)
            raise TrackingError(f"no experiment {names} at {store}; it has {others}")
        return {experiment.experiment_id: name for name, experiment in found.items() if experiment}

    def experiment_id(self, name: str) -> str:
        """Return the id of the experiment with that name; creates it if it does not exist.

        Raises:
            TrackingError: see `calls`; or the experiment is deleted.
        """
        with self.calls() as client:
            experiment = client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        if experiment and experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} is deleted; restore it (mlflow experiments restore -x {experiment_id}), or name "
                "another one"
            )
        return experiment_id


def _all_experiments(client: MlflowClient) -> dict[str, str]:
    names: dict[str, str] = {}
    token: str | None = None
    while True:
        page = client.search_experiments(page_token=token)
        names.update({experiment.experiment_id: experiment.name for experiment in page})
        token = page.token
        if not token:
            return names


@functools.cache
def _client(tracking_uri: str) -> TracingClient:
    _check_reachable(tracking_uri)
    without_request_logs()
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.tracing.client import TracingClient

    with errors_of(tracking_uri):
        if urlsplit(tracking_uri).scheme.partition("+")[0] in DATABASE_ENGINES:
            check_not_newer(tracking_uri, without_password(tracking_uri))
        return TracingClient(tracking_uri)


@contextmanager
def errors_of(tracking_uri: str) -> Iterator[None]:
    """Turn any error within the block into a TrackingError of one line, unless it is one already."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # noqa: BLE001 - a server, a database driver or MLflow may raise anything
        raise TrackingError(
            f"cannot use the MLflow store at {without_password(tracking_uri)}: {in_a_line(error)}; "
            "check [mlflow] tracking_uri"
        ) from None  # the cause may hold the password


def without_request_logs() -> None:
    """Remove requests, which contain a token, from all further MLflow warnings in this process.

    If Databricks' SDK cannot parse a response, its error quotes the request, and MLflow logs that error.
    """
    logging.getLogger("mlflow.utils.rest_utils").addFilter(_cut_request_log)  # a logger adds the same filter only once


def _cut_request_log(record: logging.LogRecord) -> bool:
    record.msg, record.args = record.getMessage().partition("Request log:")[0], ()
    return True


def in_a_line(error: BaseException) -> str:
    """Return the error with its type on one line, without a password."""
    # If Databricks' SDK cannot parse a response, its error quotes the request, including the header with the token.
    text = one_line(str(error).partition("Request log:")[0])
    return f"{type(error).__name__}: {without_password(text)[:REASON_CHARACTERS]}"


@contextmanager
def impatience() -> Iterator[None]:
    """Limit MLflow's requests within the block to seconds; by default it retries for minutes."""
    from mlflow.environment_variables import (
        MLFLOW_HTTP_REQUEST_MAX_RETRIES,
        MLFLOW_HTTP_REQUEST_TIMEOUT,
        MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER,
    )

    # One immediate retry, in case the server closed an idle connection.
    limits = {MLFLOW_HTTP_REQUEST_MAX_RETRIES: 1, MLFLOW_HTTP_REQUEST_TIMEOUT: 10}
    limits = {variable: min(variable.get(), limit) for variable, limit in limits.items()}
    limits[MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER] = False
    before = {variable: variable.get_raw() for variable in limits}
    try:
        for variable, limit in limits.items():
            variable.set(limit)
        yield
    finally:
        for variable, value in before.items():
            variable.unset() if value is None else variable.set(value)


@contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global tracking URI within the block. MLflow's own function does not restore the environment."""
    from mlflow.environment_variables import MLFLOW_TRACKING_URI

    variable = MLFLOW_TRACKING_URI.name
    earlier = os.environ.get(variable)
    try:
        with tracking_uri_within(uri):
            yield
    finally:
        os.environ.pop(variable, None)
        if earlier is not None:
            os.environ[variable] = earlier


def _check_reachable(tracking_uri: str) -> None:
    """Raise TrackingError early: MLflow would create a mistyped SQLite file, and retry a dead server for minutes."""
    shown = without_password(tracking_uri)
    try:
        parts = urlsplit(tracking_uri)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        raise TrackingError(f"{shown} is not an address; check [mlflow] tracking_uri") from None
    if parts.scheme.startswith("sqlite"):
        file = Path(tracking_uri.split("://", 1)[1].split("?", 1)[0].removeprefix("/"))
        if not file.is_file():
            raise TrackingError(f"no MLflow store at {shown}: no such file; check [mlflow] tracking_uri")
    elif parts.hostname and port:
        reason = why_unreachable(parts.hostname, port)
        if reason:
            raise TrackingError(
                f"no MLflow server answers at {shown}: {reason}; start it or check [mlflow] tracking_uri"
            )
