"""A separate store for each test that changes one; a server over the traces of a module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring_pipeline_tests.conftest import MakeOnce
from monitoring_pipeline_tests.servers import running
from monitoring_pipeline_tests.sources.stores import Store


@pytest.fixture(scope="session")
def empty_store(make_once: MakeOnce) -> Path:
    """The folder of a store without traces; copying it is faster than creating another."""
    return make_once("empty-store", Store.create)


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Store:
    """An empty MLflow store."""
    shutil.copytree(empty_store, tmp_path / "store")
    return Store.open(tmp_path / "store" / "mlflow.db")


@pytest.fixture(scope="module")
def server(traces: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` over the store `traces` of the module."""
    with running(traces.uri, tmp_path_factory.mktemp("server")) as server:
        yield server.uri


@pytest.fixture
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client gives up after the second failure of a request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
