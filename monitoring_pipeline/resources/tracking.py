"""The MLflow store or server that traces come from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.network import why_unreachable
from monitoring_pipeline.settings import without_password
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.tracing.client import TracingClient

    from monitoring_pipeline.traces.mlflow_source import UnreadableTrace


class TrackingResource(dg.ConfigurableResource):
    """The MLflow store or server that is monitored, and which of its experiments are."""

    tracking_uri: str = Field(description="sqlite:///…, postgresql://…, http(s)://… or databricks")
    experiments: list[str] = Field(default=[], description="names of the experiments; empty: all of them")

    @property
    def client(self) -> TracingClient:
        """MLflow's tracing client for the store.

        Raises:
            TrackingError: there is no such file, or nothing listens at the address.
        """
        return _client(self.tracking_uri)

    def experiment_names(self) -> dict[str, str]:
        """The monitored experiments, id -> name.

        Raises:
            TrackingError: the store is unreachable, or has no experiment of a name.
        """
        from mlflow import MlflowClient

        _ = self.client
        client = MlflowClient(self.tracking_uri)
        if not self.experiments:
            return _all_experiments(client)
        found = {name: client.get_experiment_by_name(name) for name in self.experiments}
        missing = [name for name, experiment in found.items() if experiment is None]
        if missing:
            known = ", ".join(repr(name) for name in sorted(_all_experiments(client).values()))
            store = without_password(self.tracking_uri)
            raise TrackingError(f"no experiment {', '.join(map(repr, missing))} at {store}; it has {known}")
        return {experiment.experiment_id: name for name, experiment in found.items() if experiment}

    def traces(self, window: Window) -> Iterator[list[Trace | UnreadableTrace]]:
        """The traces of the monitored experiments that start in `window`, each once, oldest first, in batches."""
        from monitoring_pipeline.traces.mlflow_source import read_traces

        experiment_ids = list(self.experiment_names())
        if experiment_ids:
            yield from read_traces(self.client, experiment_ids, window)


def _all_experiments(client: object) -> dict[str, str]:
    names: dict[str, str] = {}
    token: str | None = None
    while True:
        page = client.search_experiments(page_token=token)  # type: ignore[attr-defined]
        names.update({experiment.experiment_id: experiment.name for experiment in page})
        token = page.token
        if not token:
            return names


@functools.cache
def _client(tracking_uri: str) -> TracingClient:
    _check_reachable(tracking_uri)
    from mlflow.tracing.client import TracingClient

    return TracingClient(tracking_uri)


def _check_reachable(tracking_uri: str) -> None:
    """Fail at once and in a line: MLflow would create a mistyped SQLite file, and retry a dead server for minutes."""
    parts = urlsplit(tracking_uri)
    shown = without_password(tracking_uri)
    if parts.scheme.startswith("sqlite"):
        file = Path(tracking_uri.split("://", 1)[1].split("?", 1)[0].removeprefix("/"))
        if not file.is_file():
            raise TrackingError(f"no MLflow store at {shown}: no such file; check [mlflow] tracking_uri")
    elif parts.scheme in ("http", "https") and parts.hostname:
        reason = why_unreachable(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        if reason:
            raise TrackingError(
                f"no MLflow server answers at {shown}: {reason}; start it or check [mlflow] tracking_uri"
            )
