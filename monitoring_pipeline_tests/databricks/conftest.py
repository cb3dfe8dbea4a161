"""A workspace on loopback, and 24 hours of traces processed in process, to compare with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from monitoring_pipeline.keys import MONITORING, RANGE_END, RANGE_START
from monitoring_pipeline.orchestration import databricks_jobs
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.settings import DatabricksSettings, LakeSettings, MlflowSettings, Settings
from monitoring_pipeline.tables import Table
from monitoring_pipeline_tests.databricks.workspace_double import TOKEN, WorkspaceDouble, serving, texts
from monitoring_pipeline_tests.made_project import QUALITY, scorer
from monitoring_pipeline_tests.sources.stores import START, Store

HOURS = 24
FIRST, LAST = "2026-01-01-05:00", "2026-01-02-04:00"
FOLDER, VOLUME = "/Volumes/main/monitoring/project", "/Volumes/main/monitoring/pipeline"
SERVERLESS = DatabricksSettings(jobs="serverless", volume=VOLUME, packages=[f"{VOLUME}/monitoring_pipeline.whl"])
ODD = "monitoring_pipeline_tests.odd_scorers"
# Columns that differ between two runs of the same work at different times.
UNREPEATABLE = ["created_at", "assessed_at", "date", "dagster_run_id"]


def settings_of(folder: str, *scorers: Any, **databricks: Any) -> Settings:
    """The settings for the store and the lake in the folder."""
    return Settings(
        mlflow=MlflowSettings(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiments=["made"]),
        lake=LakeSettings(location=f"{folder}/lake"),
        scorers=[*(scorers or (QUALITY, scorer("even", f"{ODD}:even")))],
        **databricks,
    )


@dataclass(frozen=True)
class Project:
    """The store and the lake in `folder`, and the Dagster that runs it."""

    folder: Path
    settings: Settings
    instance: dg.DagsterInstance

    def run(self, key: dg.AssetKey | None = None, first: str = FIRST, last: str = LAST, **config: Any) -> Any:
        """Run the hourly chain, or one asset of it, over the hours."""
        job = build_definitions(self.settings).resolve_job_def(MONITORING)
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=[key] if key else None,
            tags={RANGE_START: first, RANGE_END: last},
            run_config={**QUIET, **config},
            raise_on_error=False,
        )

    def rows(self, table: Table, scorer: str | None = None) -> list[dict[str, Any]]:
        """The sorted rows of the table, of one scorer if named, without columns that differ between runs."""
        lake = build_resources(settings_of(str(self.folder)))["lake"]
        frame = lake.read(table).toPandas()
        frame = frame[frame["scorer"] == scorer] if scorer else frame
        left_out = [*UNREPEATABLE, *(["duration_ms"] if table.name == "assessments" else [])]
        frame = frame.drop(columns=[name for name in left_out if name in frame.columns])
        return frame.sort_values(list(table.key), ignore_index=True).astype(str).to_dict("records")

    def metadata(self, key: dg.AssetKey) -> dict[str, Any]:
        """The metadata of each partition's latest materialization."""
        records = self.instance.fetch_materializations(key, limit=1000).records
        events = [record.asset_materialization for record in reversed(records)]
        return {event.partition: event.metadata for event in events if event and event.partition}

    def log(self) -> str:
        """All events of all runs, as Dagster keeps them."""
        runs = self.instance.get_runs()
        return "\n".join(dg.serialize_value(event) for run in runs for event in self.instance.all_logs(run.run_id))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two traces in each of 24 hours, processed by the hourly chain in process; to read only."""
    folder = tmp_path_factory.mktemp("finished")
    store = Store.create(folder)
    for number in range(2 * HOURS):
        store.log(number, started=START + timedelta(minutes=30 * number + 1))
    project = Project(folder, settings_of(str(folder)), dg.DagsterInstance.ephemeral())
    assert project.run().success
    return project


@pytest.fixture
def no_token(capfd: pytest.CaptureFixture[str]) -> Callable[[Project, WorkspaceDouble], None]:
    """Asserts that nothing written or sent contains the token, except the header of requests."""

    def check(project: Project, workspace: WorkspaceDouble) -> None:
        written = {str(path): text for path, text in texts(workspace.folder).items()}
        sent = {f"{request.method} {request.path}": f"{request.query}{request.body}" for request in workspace.requests}
        logged = {"events": project.log(), "console": "".join(capfd.readouterr())}
        places = written | sent | logged
        assert len(logged["events"]) > 1000
        assert not [place for place, text in places.items() if TOKEN in text]

    return check


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkspaceDouble]:
    """The test's own workspace, polled at short intervals."""
    monkeypatch.setattr(databricks_jobs, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(databricks_jobs, "READ_SECONDS", 0.02)
    monkeypatch.setattr("dagster._core.pipes.utils.DEFAULT_SLEEP_INTERVAL", 0.02)
    with serving(tmp_path / "workspace", monkeypatch) as double:
        yield double


@pytest.fixture
def remote(finished: Project, workspace: WorkspaceDouble) -> Project:
    """The finished project's files in a volume of the workspace, with serverless jobs and no run yet."""
    folder = workspace.folder_of(FOLDER)
    shutil.copytree(finished.folder, folder)
    return Project(folder, settings_of(FOLDER, databricks=SERVERLESS), dg.DagsterInstance.ephemeral())


@pytest.fixture(autouse=True)
def _no_active_experiment(no_active_experiment: None) -> None:
    """Setting up archival makes its experiment the active one; undo that."""
