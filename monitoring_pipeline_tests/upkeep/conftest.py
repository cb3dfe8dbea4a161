"""A project whose whole chain has run, with one user's text in every place where text is stored."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from mlflow.entities import AssessmentSource, Feedback

from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import run_chain
from monitoring_pipeline.orchestration.unchanged import Work
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.settings import LakeSettings, MlflowSettings, ReportSettings, Settings
from monitoring_pipeline.upkeep import turns
from monitoring_pipeline_tests.conftest import MakeOnce
from monitoring_pipeline_tests.made_project import QUALITY, WINDOW, MadeProject, scorer
from monitoring_pipeline_tests.sources.stores import Store, span_json
from monitoring_pipeline_tests.upkeep.marks import ANN, MARK

ECHO = scorer("echo", "monitoring_pipeline_tests.upkeep.marks:echo")


@pytest.fixture(scope="session")
def run_folder(make_once: MakeOnce) -> Path:
    """Store, lake and reports after a run: traces 0 to 5, of which 1, 3 and 5 are Ann's and contain the mark."""
    return make_once("run", make_run)


def make_run(folder: Path) -> None:
    """Fill the folder of `run_folder`."""
    store = Store.create(folder)
    for number in range(6):
        text = f"{MARK} says Ann" if number % 2 else "nothing of note, which is long enough to be good"
        attributes = {"mlflow.spanInputs": json.dumps({"q": text}), "mlflow.spanOutputs": json.dumps(text)}
        metadata = {"mlflow.trace.user": ANN if number % 2 else "bob", "mlflow.trace.session": f"s{number % 2}"}
        failed = {"code": "STATUS_CODE_ERROR", "message": text}
        store.log(
            number,
            [span_json(number, attributes=attributes, status=failed)],
            [Feedback(name="echo", value=True, rationale=text, source=AssessmentSource("HUMAN", "x"))],
            trace_metadata=metadata,
            tags={"note": text},
            request_preview=text,
        )
    project = project_in(folder)
    instance = dg.DagsterInstance.ephemeral()
    definitions = build_definitions(project.settings)
    work = Work([WINDOW], WINDOW.days())
    assert run_chain(definitions, project.settings, work, None, instance, lambda event: None).failed_steps == {}
    # Archive it again after a change, so that older files contain the text too.
    store.client.set_trace_tag("tr-00000000000000000000000000000001", "later", MARK)
    resources = build_resources(project.settings)
    archive_window(project.settings.archive, resources["tracking"], resources["lake"], WINDOW)


def project_in(folder: Path) -> MadeProject:
    """The project whose store, lake and reports are in the folder."""
    settings = Settings(
        mlflow=MlflowSettings(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiments=["made"]),
        lake=LakeSettings(location=str(folder / "lake")),
        reports=ReportSettings(location=str(folder / "reports")),
        scorers=[QUALITY, ECHO],
    )
    return MadeProject(folder, settings)


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> MadeProject:
    """The test's own copy of the project."""
    shutil.copytree(run_folder, tmp_path / "run")
    return project_in(tmp_path / "run")


@pytest.fixture(autouse=True)
def _short_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a deletion announce itself without waiting for runs that start at the same time."""
    monkeypatch.setattr(turns, "NOTICE", timedelta(0))
