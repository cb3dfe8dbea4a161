"""`monitoring-pipeline setup`: what it creates on a laptop and on Databricks, and that it can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from monitoring_pipeline import api, lifecycle
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline.tables import TABLES
from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.databricks.managed_double import ManagedDouble
from monitoring_pipeline_tests.databricks.workspace_double import TOKEN, error, serving
from monitoring_pipeline_tests.made_project import MadeProject
from monitoring_pipeline_tests.sources.stores import Store


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling(monkeypatch, capsys, "setup")


@pytest.fixture
def service(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ManagedDouble]:
    """Managed evaluation in the test's own workspace."""
    with serving(tmp_path / "workspace", monkeypatch) as workspace:
        yield ManagedDouble(workspace, server, tmp_path / "archived", lambda name, trace: None)


@pytest.fixture
def experiment(store: Store, tmp_path: Path) -> str:
    """The name of the test's own experiment."""
    name = f"/Shared/{tmp_path.name}"
    MlflowClient(store.uri).create_experiment(name, artifact_location=store.file.parent.as_uri())
    return name


def configure(folder: Path, experiment: str, location: str = "main.monitoring.archived") -> Path:
    file = folder / "monitoring.toml"
    file.write_text(
        f"""
[mlflow]
tracking_uri = "databricks"
experiments = ["{experiment}"]
[archive]
source = "delta"
location = "{location}"
[databricks]
monitoring_frequency_minutes = 5
[[scorers]]
name = "safety"
builtin = "Safety"
model = "databricks"
managed = "databricks"
[[scorers]]
name = "stage_latency"
scorer = "monitoring_pipeline.scoring.scorers:stage_latency"
state = "stopped"
""",
        encoding="utf-8",
    )
    return file


def test_on_a_laptop_it_creates_tables_and_scorers(made: MadeProject, call: Call) -> None:
    file = made.configure()
    called = call("--config", str(file))
    assert (called.code, called.error) == (0, "")
    lines = called.out.splitlines()
    assert [line.removeprefix("ok   ").split(":")[0] for line in lines] == [
        *(f"table {table.name}" for table in TABLES),
        "scorer response_quality",
        "scorer stage_latency",
    ]
    assert all((Path(made.settings.lake.location) / table.name / "_delta_log").is_dir() for table in TABLES)
    assert lines[-2].startswith("ok   scorer response_quality: created, active at rate 1")
    assert [handle.state.value for handle in lifecycle.handles(made.settings)] == ["active", "active"]

    versions = made.versions()
    again = call("--config", str(file)).out.splitlines()
    assert again[-2:] == [
        "ok   scorer response_quality: unchanged, active at rate 1",
        "ok   scorer stage_latency: unchanged, active at rate 1",
    ]
    assert again[: len(TABLES)] == lines[: len(TABLES)]
    assert made.versions() == versions


def test_a_scorer_that_is_no_longer_configured_is_reported(made: MadeProject) -> None:
    api.setup(made.settings)
    fewer = made.settings.model_copy(update={"scorers": made.settings.scorers[:1]})
    assert api.setup(fewer)[-2:] == [
        "scorer stage_latency: deleted, unregistered at rate 1",
        "scorer response_quality: unchanged, active at rate 1",
    ]


def test_on_databricks_it_also_sets_up_archival_and_scorers(
    service: ManagedDouble, experiment: str, tmp_path: Path, call: Call
) -> None:
    file = configure(tmp_path, experiment)
    called = call("--config", str(file))
    assert (called.code, called.error) == (0, "")
    assert called.out.splitlines()[len(TABLES) :] == [
        f"ok   archival of experiment {experiment}: started, into main.monitoring.archived",
        "ok   scorer safety: created, active at rate 1, run by Databricks",
        "ok   scorer stage_latency: created, stopped at rate 1",
        f"ok   scorers of experiment {experiment}: run every 5 minutes",
    ]
    assert TOKEN not in called.out
    (there,) = (found for found in service.experiments.values() if found.scorers)
    assert (there.archive_table, there.frequency_minutes) == ("main.monitoring.archived", 5)
    assert {scorer["name"]: scorer.get("sample_rate") for scorer in there.scorers} == {
        "safety": 1.0,
        "stage_latency": 0.0,  # MLflow's registry there also lists the scorers that run here, but does not run them
    }
    again = call("--config", str(file)).out.splitlines()
    assert again[len(TABLES) :] == [
        f"ok   archival of experiment {experiment}: already started, into main.monitoring.archived",
        "ok   scorer safety: unchanged, active at rate 1, run by Databricks",
        "ok   scorer stage_latency: unchanged, stopped at rate 1",
        f"ok   scorers of experiment {experiment}: run every 5 minutes",
    ]
    assert api.setup(load_settings(file)) == [line.removeprefix("ok   ") for line in again]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("trace-archival", "error: Databricks request failed: HTTPError: 403 Client Error"),
        ("scheduled-scorers", "denies access: no,"),
        ("monitoring-configuration", "error: Databricks request failed: HTTPError: 403 Client Error"),
    ],
)
def test_a_refusal_is_one_line_and_the_next_run_continues(
    service: ManagedDouble, experiment: str, tmp_path: Path, call: Call, path: str, line: str
) -> None:
    file = configure(tmp_path, experiment)
    service.workspace.answer_next(1, error(403, "PERMISSION_DENIED", "no,\nnot you"), path)
    called = call("--config", str(file))
    assert called.code == 1
    assert line in called.error
    assert called.error.count("error:") == 1
    assert call("--config", str(file)).code == 0


def test_archival_needs_a_table_in_a_catalog(
    service: ManagedDouble, experiment: str, tmp_path: Path, call: Call
) -> None:
    called = call("--config", str(configure(tmp_path, experiment, location="s3://bucket/archived")))
    assert called.code == 1
    assert called.error == (
        "error: archive.location = 's3://bucket/archived': Databricks archives into catalog.schema.table"
    )


def test_a_missing_store_is_reported_in_one_line(made: MadeProject, call: Call) -> None:
    file = made.configure()
    (made.folder / "mlflow.db").unlink()
    called = call("--config", str(file))
    assert called.code == 1
    assert called.error.startswith("error: no MLflow store at sqlite:///")
