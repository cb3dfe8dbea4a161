"""Trace archival by Databricks: the API functions, with the real client against a double of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.tracking.fluent import _get_experiment_id

from monitoring_pipeline.api import (
    configure_trace_archival_experiment,
    enable_trace_archival,
    setup_trace_archival,
)
from monitoring_pipeline.databricks import agents
from monitoring_pipeline.databricks.archival import TraceArchival
from monitoring_pipeline.errors import MonitoringError, TrackingError
from monitoring_pipeline.settings import MlflowSettings, Settings
from monitoring_pipeline_tests.databricks.managed_double import EVALS, ManagedDouble
from monitoring_pipeline_tests.databricks.workspace_double import TOKEN, WorkspaceDouble, error, serving
from monitoring_pipeline_tests.sources.stores import Store

TABLE = "production.monitoring.agent_traces"
PARTS = ("production", "monitoring", "agent_traces")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkspaceDouble]:
    """The test's own workspace."""
    with serving(tmp_path, monkeypatch) as double:
        yield double


@pytest.fixture
def service(workspace: WorkspaceDouble, server: str, tmp_path: Path) -> ManagedDouble:
    """Managed evaluation in the workspace."""
    return ManagedDouble(workspace, server, tmp_path / "archived", lambda name, trace: None)


@pytest.fixture
def experiments(store: Store, request: pytest.FixtureRequest, service: ManagedDouble) -> dict[str, str]:
    """The test's own two experiments, name -> id."""
    names = [f"/Shared/{request.node.name}/{stage}" for stage in ("staging", "production")]
    folder = store.file.parent.as_uri()
    return {name: MlflowClient(store.uri).create_experiment(name, artifact_location=folder) for name in names}


@pytest.fixture
def settings(experiments: dict[str, str]) -> Settings:
    """Settings at Databricks, with both experiments."""
    return Settings(mlflow=MlflowSettings(tracking_uri="databricks", experiments=list(experiments)))


def test_it_is_enabled_for_the_monitored_experiments_once(
    settings: Settings, experiments: dict[str, str], service: ManagedDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = list(experiments.values())
    assert enable_trace_archival(*PARTS, settings=settings) == [TraceArchival(one, TABLE, True) for one in ids]
    for one in ids:
        (request,) = service.requests_to("POST", f"experiments/{one}/trace-archival")
        assert request == {"experiment_id": one, "archive_table_fullname": TABLE}
        assert service.experiments[one].archive_table == TABLE
    assert enable_trace_archival(*PARTS, settings=settings) == [TraceArchival(one, TABLE, False) for one in ids]
    assert capsys.readouterr().out == ""


def test_names_of_tables_ignore_case(settings: Settings, experiments: dict[str, str]) -> None:
    name = next(iter(experiments))
    enable_trace_archival(*PARTS, experiment_name=name, settings=settings)
    (again,) = enable_trace_archival("PRODUCTION", "Monitoring", experiment_name=name, settings=settings)
    assert (again.is_new, again.experiment_id) == (False, experiments[name])


def test_an_error_names_the_existing_and_the_requested_table(
    settings: Settings, experiments: dict[str, str], service: ManagedDouble
) -> None:
    name, experiment_id = next(iter(experiments.items()))
    enable_trace_archival(*PARTS, experiment_name=name, settings=settings)
    with pytest.raises(MonitoringError) as refused:
        enable_trace_archival("dev", "monitoring", "agent_traces", name, settings)
    assert str(refused.value) == (
        f"experiment {experiment_id} is archived to {TABLE}, not to dev.monitoring.agent_traces; use that table, or "
        f"disable it with mlflow.tracing.archival.disable_databricks_trace_archival(experiment_id='{experiment_id}')"
    )
    assert service.experiments[experiment_id].archive_table == TABLE


def test_an_experiment_is_created_and_becomes_active(settings: Settings, store: Store, tmp_path: Path) -> None:
    name = f"/Shared/{tmp_path.name}/new"
    before = mlflow.get_tracking_uri()
    experiment_id = configure_trace_archival_experiment(name, settings)
    found = MlflowClient(store.uri).get_experiment_by_name(name)
    assert found is not None
    assert found.experiment_id == experiment_id
    assert _get_experiment_id() == experiment_id
    assert configure_trace_archival_experiment(name, settings) == experiment_id
    assert mlflow.get_tracking_uri() == before


def test_setup_creates_the_experiment_and_enables_archival(
    settings: Settings, service: ManagedDouble, tmp_path: Path
) -> None:
    done = setup_trace_archival(*PARTS, f"/Shared/{tmp_path.name}/agent", settings)
    assert (done.table, done.is_new) == (TABLE, True)
    assert service.experiments[done.experiment_id].archive_table == TABLE
    assert _get_experiment_id() == done.experiment_id


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (("main; DROP TABLE x", "s", "t"), "catalog = 'main; DROP TABLE x': must be letters, digits and _, such as"),
        (("main", "a.b", "t"), "schema = 'a.b': must be letters"),
        (("main", "s", ""), "table = '': must be letters"),
        (("main", "s", "`t`"), "table = '`t`': must be letters"),
    ],
)
def test_an_invalid_name_is_refused_before_any_change(
    settings: Settings, workspace: WorkspaceDouble, parts: tuple[str, str, str], line: str
) -> None:
    with pytest.raises(MonitoringError) as refused:
        setup_trace_archival(*parts, "/Shared/never made", settings)
    assert str(refused.value).startswith(line)
    assert workspace.requests == []


def test_a_missing_experiment_is_reported_in_one_line(settings: Settings) -> None:
    with pytest.raises(TrackingError, match="no experiment '/Shared/none' at databricks; it has "):
        enable_trace_archival(*PARTS, experiment_name="/Shared/none", settings=settings)


@pytest.mark.parametrize(("status", "times"), [(429, 2), (500, 1), (503, 1)])
def test_a_temporary_failure_is_retried(
    settings: Settings, experiments: dict[str, str], workspace: WorkspaceDouble, status: int, times: int
) -> None:
    name, experiment_id = next(iter(experiments.items()))
    workspace.answer_next(times, error(status, "BUSY", "busy"), f"{EVALS}/experiments/{experiment_id}")
    (done,) = enable_trace_archival(*PARTS, experiment_name=name, settings=settings)
    assert done.is_new


def test_a_lost_response_does_not_matter(
    settings: Settings, experiments: dict[str, str], workspace: WorkspaceDouble
) -> None:
    name, experiment_id = next(iter(experiments.items()))
    path = f"{EVALS}/experiments/{experiment_id}"
    workspace.answer_next(1, error(500, "INTERNAL_ERROR", "lost"), path, carried_out=True)
    assert enable_trace_archival(*PARTS, experiment_name=name, settings=settings) == [
        TraceArchival(experiment_id, TABLE, False)
    ]


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_refusal_is_one_line_without_the_token(
    settings: Settings, workspace: WorkspaceDouble, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(agents, "RETRY_SECONDS", 0.1)
    workspace.answer_next(1000, error(status, "NO", f"no,\nnot by {TOKEN[:4]}"), EVALS)
    with pytest.raises(MonitoringError, match=r"^Databricks request failed: HTTPError: ") as refused:
        enable_trace_archival(*PARTS, settings=settings)
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_missing_credentials_are_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_HOST")
    monkeypatch.delenv("DATABRICKS_TOKEN")
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/nowhere")
    with pytest.raises(MonitoringError) as refused:
        enable_trace_archival(*PARTS, settings=settings)
    assert "\n" not in str(refused.value)


def test_on_another_server_the_pipeline_archives_itself() -> None:
    settings = Settings(mlflow=MlflowSettings(tracking_uri="http://me:secret@mlflow.here:5000"))
    message = (
        r"^trace archival is a service of Databricks \(\[mlflow\] tracking_uri = 'databricks'\); from "
        r"http://\*\*\*@mlflow\.here:5000 this pipeline archives traces itself, with the asset archived_traces$"
    )
    with pytest.raises(MonitoringError, match=message):
        enable_trace_archival(*PARTS, settings=settings)
    with pytest.raises(MonitoringError, match=message):
        configure_trace_archival_experiment("/Shared/agent", settings)
    with pytest.raises(MonitoringError, match=message):
        setup_trace_archival(*PARTS, "/Shared/agent", settings)
