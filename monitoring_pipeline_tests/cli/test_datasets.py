"""`monitoring-pipeline datasets` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring_pipeline.api import read_dataset
from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.made_project import FROM, TO, MadeProject

DATASETS = """
[[datasets]]
name = "prod"
kind = "traces"
filter = "tags.env = 'prod'"
mlflow = true

[[datasets]]
name = "varied"
kind = "diverse"
sample_size = 5
location = "elsewhere"
"""


@pytest.fixture
def file(made: MadeProject, monkeypatch: pytest.MonkeyPatch, dagster_home: Path) -> Path:
    """The file of a configured project with two datasets, with the working folder in it."""
    found = made.configure()
    found.write_text(found.read_text(encoding="utf-8") + DATASETS, encoding="utf-8")
    monkeypatch.chdir(made.folder)
    return found


@pytest.fixture
def call(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling(monkeypatch, capsys, "datasets")


def test_a_dataset_is_built_listed_and_rebuilt(call: Call, made: MadeProject) -> None:
    built = call("build", "prod", "--from", FROM, "--to", TO)
    folder = made.folder / "data" / "datasets" / "prod" / "2026-01-01T05--2026-01-01T09"
    assert (built.code, built.out.splitlines()) == (
        0,
        [
            f"20 records: {folder / 'manifest.json'}",
            "MLflow dataset prod: 20 records added, 0 skipped because it has their inputs, 20 in total",
        ],
    )
    repeated = call("build", "prod", "--from", FROM, "--to", TO).out.splitlines()[1]
    assert repeated == "MLflow dataset prod: 0 records added, 20 skipped because it has their inputs, 20 in total"
    assert len(read_dataset(folder)) == 20
    varied = call("build", "varied", "--from", FROM, "--to", TO)
    assert varied.out.startswith(f"5 records: {made.folder / 'elsewhere' / 'varied'}")

    listed = [row for row in call("list").table()[1:] if row[0]]
    assert [(row[0], row[1], row[2], row[3], row[4]) for row in listed] == [
        ("prod", "traces", "tags.env = 'prod'", "prod", "1"),
        ("varied", "diverse", "", "", "1"),
    ]

    (folder / "records.jsonl").unlink()
    again = call("rebuild", str(folder))
    assert (again.code, again.out) == (0, "20 records, the same as before\n")
    assert len(read_dataset(folder)) == 20


def test_errors_are_reported_in_one_line(call: Call, file: Path, made: MadeProject) -> None:
    assert call("build", "pord").error == "error: pord: no such dataset; configured are prod, varied"
    nowhere = call("rebuild", "nowhere")
    assert nowhere.code == 1
    assert nowhere.error.startswith("error: no dataset at nowhere: No such file or directory; pass a manifest")
    assert call("build", "prod", "--from", TO, "--to", FROM).code == 2
    file.write_text(file.read_text(encoding="utf-8").replace(DATASETS, ""), encoding="utf-8")
    assert call("list").error == "error: no datasets; add [[datasets]] to monitoring.toml"
    assert (
        call("build", "prod").error
        == "error: prod: no such dataset; configured are none; add [[datasets]] to monitoring.toml"
    )
