"""Deletion on request reaches the files of configured datasets."""

from __future__ import annotations

import json

import pytest

from monitoring_pipeline.api import read_dataset
from monitoring_pipeline.datasets.configured import build
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.settings import DatasetSettings
from monitoring_pipeline_tests.made_project import WINDOW, MadeProject
from monitoring_pipeline_tests.sources.stores import trace_id
from monitoring_pipeline_tests.upkeep.marks import ANN, MARK
from monitoring_pipeline_tests.upkeep.test_deletion import ANNS, delete, holding


@pytest.fixture
def project(run: MadeProject) -> MadeProject:
    """The project with two datasets, each built for two days, the second without traces."""
    location = str(run.folder / "datasets")
    both = DatasetSettings(name="both", kind="traces", formats=["jsonl", "parquet"], location=location)
    bobs = DatasetSettings(
        name="bobs", kind="traces", filter=f"metadata.`mlflow.trace.user` != '{ANN}'", location=location
    )
    project = MadeProject(run.folder, run.settings.model_copy(update={"datasets": [both, bobs]}))
    resources = build_resources(project.settings)
    for entry in (both, bobs):
        for period in ("2026-01-01", "2026-01-02"):
            build(resources["lake"], resources["tracking"], [], entry, WINDOW, period)
    return project


def test_no_byte_of_the_user_is_left_in_datasets(project: MadeProject) -> None:
    folder = project.folder / "datasets"
    assert holding(folder, MARK, *ANNS)
    untouched = (folder / "bobs" / "2026-01-01" / "manifest.json").read_bytes()

    done = delete(project, user=ANN)

    assert holding(folder, MARK, ANN, *ANNS) == ["bobs/2026-01-01/manifest.json", "bobs/2026-01-02/manifest.json"]
    assert [path.relative_to(folder).as_posix() for path in done.datasets] == ["both/2026-01-01", "both/2026-01-02"]
    records = read_dataset(folder / "both" / "2026-01-01")
    assert [record["metadata"]["source_trace"] for record in records] == [trace_id(number) for number in (4, 2, 0)]
    manifest = json.loads((folder / "both" / "2026-01-01" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["name"], manifest["files"]) == ("both", ["records.jsonl", "records.parquet"])
    assert (folder / "bobs" / "2026-01-01" / "manifest.json").read_bytes() == untouched


def test_an_unreadable_dataset_stops_the_deletion_until_it_is_repaired(project: MadeProject) -> None:
    file = project.folder / "datasets" / "both" / "2026-01-01" / "records.jsonl"
    text = file.read_text(encoding="utf-8")
    file.write_text("", encoding="utf-8")
    with pytest.raises(MonitoringError, match="build the dataset again"):
        delete(project, user=ANN)
    assert not delete_is_complete(project)

    file.write_text(text, encoding="utf-8")
    delete(project, trace_id(0))
    assert delete_is_complete(project)
    assert MARK not in file.read_text(encoding="utf-8")


def delete_is_complete(project: MadeProject) -> bool:
    from monitoring_pipeline.upkeep.deletion import has_unfinished

    return not has_unfinished(project.lake)
