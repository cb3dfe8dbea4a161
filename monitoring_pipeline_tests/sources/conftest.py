"""A separate store for each test that changes one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from monitoring_pipeline_tests.conftest import MakeOnce
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
