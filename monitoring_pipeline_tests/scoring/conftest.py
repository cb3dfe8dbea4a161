"""The recorded conversations as the scoring tests use them: as traces, and archived once."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from mlflow.entities import Trace

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.traces.archive import archive
from monitoring_pipeline_tests.conftest import RECORDED, RECORDED_WINDOW


@pytest.fixture(scope="session")
def load_tau(recorded_conversations: list[dict]) -> ModuleType:
    """The program that made the store of the recorded conversations; it knows their turns and trace ids."""
    spec = importlib.util.spec_from_file_location("load_tau", RECORDED / "tools" / "load_tau.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recorded_traces(recorded_store: str) -> list[Trace]:
    """The traces of the recorded conversations, oldest first."""
    batches = TrackingResource(tracking_uri=recorded_store).traces(RECORDED_WINDOW)
    return [trace for batch in batches for trace in batch if isinstance(trace, Trace)]


@pytest.fixture(scope="session")
def archived(recorded_traces: list[Trace], spark: SparkResource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake that holds the recorded conversations and nothing else, to read only."""
    folder = tmp_path_factory.mktemp("archived") / "lake"
    archive(LakeResource(location=str(folder), spark=spark), RECORDED_WINDOW, [[*recorded_traces]], {})
    return folder


@pytest.fixture
def archived_lake(archived: Path, spark: SparkResource, tmp_path: Path) -> LakeResource:
    """A lake of the test's own with the recorded conversations, not scored yet."""
    shutil.copytree(archived, tmp_path / "archived")
    return LakeResource(location=str(tmp_path / "archived"), spark=spark)
