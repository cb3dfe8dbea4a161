"""Shared by tests: tiers, seeds, an engine, and stores and lakes that are created once per run, then copied or read."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from dagster import DagsterInstance
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests import services
from monitoring_pipeline_tests.servers import running

if TYPE_CHECKING:
    from mlflow.entities import Trace

    from monitoring_pipeline_tests.cluster import SparkCluster
    from monitoring_pipeline_tests.made_project import MadeProject
    from monitoring_pipeline_tests.scoring.model_double import ModelDouble
    from monitoring_pipeline_tests.sources.stores import Store

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Each `mlflow server` would start seven processes for jobs that no test uses, which takes half a minute of CPU.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
for variable in ("MLFLOW_TRACKING_URI", "SPARK_REMOTE", "MONITORING_CONFIG", "DAGSTER_HOME"):
    os.environ.pop(variable, None)

# The libraries leave a million objects that live for the whole run: to look through them often takes a third of the
# time of tests that run much Python, such as those of Dagster's automation.
gc.set_threshold(100_000, 20, 100)

RECORDED = Path(__file__).resolve().parents[2] / "shared"
RECORDED_WINDOW = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))


LONG_FILES = ("test_app", "test_build", "test_deletion", "test_from_the_documents", "test_jobs", "test_managed")
LONG_FILES += ("test_merging", "test_mlflow_sql", "test_sessions")
# The same examples in every run; `--hypothesis-profile default` draws new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --tier."""
    parser.addoption("--tier", choices=services.TIERS, help="run only the tests of this tier (default: all tests)")


def pytest_configure(config: pytest.Config) -> None:
    """Restrict the run to the tier of --tier."""
    services.restrict_to(config.getoption("--tier"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the other tier, and put long files first, so that processes end at about the same time."""
    if tier := config.getoption("--tier"):
        config.hook.pytest_deselected(items=[item for item in items if services.tier_of(item) != tier])
        items[:] = [item for item in items if services.tier_of(item) == tier]
    items.sort(key=lambda item: (item.path.parent.name not in services.FOLDERS, item.path.stem not in LONG_FILES))


class FilesTogether(LoadFileScheduling):
    """In a parallel run one process runs all tests of a file, and one process all tests that need the cluster.

    `--dist loadgroup` cannot do this: pytest 9.2 ignores the node ids by which xdist 3.8 identifies groups.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "conformance" if "/conformance/" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """The scheduler for `--dist loadfile`."""
    return FilesTogether(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def spark() -> SparkResource:
    """The embedded engine."""
    return SparkResource()


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Fills a folder once per run: the first process that needs it calls the function, the others wait.

    Takes the name of the folder and the function, and returns the folder, which tests must not change.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, complete = shared / f"shared-{name}", shared / f"shared-{name}.complete"
        with FileLock(shared / f"shared-{name}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                complete.touch()
        return folder

    return make


@pytest.fixture
def lake(tmp_path: Path, spark: SparkResource) -> LakeResource:
    """An empty lake."""
    return LakeResource(location=str(tmp_path / "lake"), spark=spark)


@pytest.fixture(scope="session")
def made_folder(make_once: MakeOnce) -> Path:
    """The folder of a store and a lake of made traces, to copy."""
    from monitoring_pipeline_tests.made_project import make

    return make_once("made", make)


@pytest.fixture
def made(made_folder: Path, tmp_path: Path) -> MadeProject:
    """The test's own project with 40 made traces, not scored yet."""
    from monitoring_pipeline_tests.made_project import MadeProject

    return MadeProject.copy(made_folder, tmp_path / "made")


@pytest.fixture(scope="session")
def _dagster_home(make_once: MakeOnce) -> Path:
    def make(folder: Path) -> None:
        (folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        DagsterInstance.from_config(str(folder)).dispose()

    return make_once("dagster", make)


@pytest.fixture
def dagster_home(_dagster_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own DAGSTER_HOME; a copy, because creating a new one takes seconds."""
    folder = tmp_path / "dagster_home"
    shutil.copytree(_dagster_home, folder)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def store(make_once: MakeOnce, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A SQLite MLflow store for all tests of this process; each test has its own experiment in it."""
    from monitoring_pipeline_tests.sources.stores import Store

    folder = tmp_path_factory.mktemp("store")
    shutil.copytree(make_once("empty-store", Store.create), folder, dirs_exist_ok=True)
    return Store.open(folder / "mlflow.db")


@pytest.fixture(scope="session")
def server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` over the store."""
    with running(store.uri, tmp_path_factory.mktemp("server")) as server:
        yield server.uri


@pytest.fixture(autouse=True)
def _no_configuration_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with --config sets MONITORING_CONFIG for its child processes; unset it after the test."""
    monkeypatch.setenv("MONITORING_CONFIG", "")


@pytest.fixture
def no_active_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset MLflow's active experiment, which applies to the process and its children, before and after."""
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")


@pytest.fixture(scope="session")
def recorded_conversations() -> list[dict]:
    """The recorded conversations, one for each line of their file."""
    file = RECORDED / "data" / "tau_airline_gpt4o.jsonl"
    if not file.is_file():
        reason = f"the recorded conversations are not at {file}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def recorded_store(recorded_conversations: list[dict], make_once: MakeOnce) -> str:
    """The tracking URI of a SQLite store with the recorded conversations (experiment `airline`), to read only."""

    def make(folder: Path) -> None:
        subprocess.run(
            [
                *(sys.executable, RECORDED / "tools" / "load_tau.py", RECORDED / "data" / "tau_airline_gpt4o.jsonl"),
                *("--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )

    return f"sqlite:///{make_once('recorded', make) / 'mlflow.db'}"


@pytest.fixture(scope="session")
def load_tau(recorded_conversations: list[dict]) -> ModuleType:
    """The program that fills the store of the recorded conversations; it knows their turns and trace ids."""
    spec = importlib.util.spec_from_file_location("load_tau", RECORDED / "tools" / "load_tau.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recorded_traces(recorded_store: str) -> list[Trace]:
    """The traces of the recorded conversations, oldest first."""
    from monitoring_pipeline.resources.tracking import TrackingResource
    from monitoring_pipeline_tests.sources.stores import traces_of

    return traces_of(TrackingResource(tracking_uri=recorded_store), RECORDED_WINDOW)


@pytest.fixture(scope="session")
def archived(recorded_traces: list[Trace], spark: SparkResource, make_once: MakeOnce) -> Path:
    """The folder of a lake with only the recorded conversations, to read only."""
    from monitoring_pipeline.archive.merging import archive

    def make(folder: Path) -> None:
        lake = LakeResource(location=str(folder / "lake"), spark=spark)
        archive(lake, RECORDED_WINDOW, [[*recorded_traces]], {})

    return make_once("archived", make) / "lake"


@pytest.fixture
def archived_lake(archived: Path, spark: SparkResource, tmp_path: Path) -> LakeResource:
    """The test's own lake with the recorded conversations, not scored yet."""
    shutil.copytree(archived, tmp_path / "archived")
    return LakeResource(location=str(tmp_path / "archived"), spark=spark)


@pytest.fixture(scope="session")
def recorded_server(recorded_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `mlflow server` on loopback over the store of the recorded conversations."""
    with running(recorded_store, tmp_path_factory.mktemp("server")) as server:
        yield server.uri


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """A Spark cluster."""
    from monitoring_pipeline_tests.cluster import running

    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelDouble]:
    """A double of the model that judges with `openai:/` call."""
    from monitoring_pipeline_tests.scoring.model_double import serving

    with serving(monkeypatch) as double:
        yield double
