"""Datasets in files: writing, reading, rebuilding, and errors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.api import (
    build_dataset_from_traces,
    build_diverse_eval_dataset,
    extract_failures_for_eval,
    read_dataset,
    rebuild_dataset,
    write_dataset,
)
from monitoring_pipeline.datasets.files import PARTS
from monitoring_pipeline.datasets.records import Dataset, canonical, digest_of
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings, Settings
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.datasets.recorded import TIMES, settings_of

ODD: list[dict[str, Any]] = [
    {"inputs": {"q": 'ü "\n\u2028 </script>'}, "outputs": None},
    {"inputs": {"q": "\ud800"}, "outputs": [1, 2.5, {"a": None}], "expectations": {"n": 10**30}},
    {"inputs": {}, "metadata": {"test_id": "t"}},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def settings(archived_lake: LakeResource, recorded_store: str) -> Settings:
    quality = ScorerSettings(name="quality", scorer=f"{SHIPPED_SCORERS}:response_quality", pass_if=">= 1")
    return settings_of(archived_lake, recorded_store, quality)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("formats", [["jsonl"], ["parquet"], ["parquet", "jsonl"]])
def test_records_are_read_as_they_were_written(formats: list[Any], tmp_path: Path) -> None:
    written = write_dataset(ODD, tmp_path / "odd", formats, name="odd")
    assert read_dataset(tmp_path / "odd") == read_dataset(written.manifest) == ODD
    assert sorted(path.name for path in (tmp_path / "odd").iterdir()) == sorted(
        ["manifest.json", *(f"records.{format}" for format in formats)]
    )
    manifest = manifest_of(tmp_path / "odd")
    assert (manifest["name"], manifest["record_count"], manifest["origin"]) == ("odd", 3, None)
    assert manifest["digest"] == written.digest


def test_the_digest_is_the_digest_of_the_lines(tmp_path: Path) -> None:
    written = write_dataset(ODD, tmp_path)
    assert written.digest == hashlib.sha256((tmp_path / "records.jsonl").read_bytes()).hexdigest()
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == ODD


def test_the_parquet_file_has_the_parts_as_json(tmp_path: Path) -> None:
    write_dataset(ODD, tmp_path, ["parquet"])
    table = pd.read_parquet(tmp_path / "records.parquet")
    assert tuple(table.columns) == PARTS
    found = [
        {part: json.loads(text) for part, text in row.items() if text is not None} for row in table.to_dict("records")
    ]
    assert found == ODD


@given(
    st.lists(
        st.fixed_dictionaries({"inputs": st.dictionaries(st.text(), JSON)}, optional={"outputs": JSON}), max_size=4
    )
)
def test_equal_records_have_the_same_digest_in_any_order_of_keys(records: list[dict[str, Any]]) -> None:
    turned = [{key: record[key] for key in reversed(record)} for record in records]
    assert digest_of(turned) == digest_of(records)
    assert [json.loads(canonical(record)) for record in records] == records


def test_a_dataset_replaces_an_earlier_one_and_its_files(tmp_path: Path) -> None:
    write_dataset(ODD, tmp_path, ["jsonl", "parquet"])
    write_dataset(ODD[:1], tmp_path, ["jsonl"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "records.jsonl"]
    assert read_dataset(tmp_path) == ODD[:1]


def test_an_interrupted_write_is_not_read_as_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(ODD, tmp_path)

    def no_disk(*arguments: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("monitoring_pipeline.datasets.files._write_json", no_disk)
        with pytest.raises(MonitoringError, match=r"^cannot write the dataset in .*: no space left$"):
            write_dataset(ODD[:1], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "records.jsonl"]
    with pytest.raises(MonitoringError, match=r"the records in .* do not match .*; build the dataset again$"):
        read_dataset(tmp_path)


def test_mistakes_are_reported(tmp_path: Path) -> None:
    formats: Any = ["csv"]
    with pytest.raises(MonitoringError, match=r"^format csv is unknown; use jsonl or parquet$"):
        write_dataset(ODD, tmp_path, formats)
    with pytest.raises(MonitoringError, match=r"^a record cannot be written as JSON: "):
        write_dataset([{"inputs": {"q": {1, 2}}}], tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MonitoringError, match=r"^no dataset at .*: No such file"):
        read_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.raises(MonitoringError, match=r"is not the manifest of a dataset; pass the manifest\.json next"):
        read_dataset(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MonitoringError, match=r"^cannot write the dataset in "):
        write_dataset(ODD, tmp_path / "file" / "folder")


# Rebuilding


def test_a_dataset_is_rebuilt_identically_after_the_archive_changed(
    settings: Settings, archived_lake: LakeResource, tmp_path: Path
) -> None:
    dataset = extract_failures_for_eval("task_success", **TIMES, settings=settings)
    folder = tmp_path / "failures"
    write_dataset(dataset, folder, ["jsonl", "parquet"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    gone = [record["metadata"]["source_trace"] for record in dataset[:10]]
    assert archived_lake.remove(AGENT_TRACES, RECORDED_WINDOW, "trace_id", gone) == 10
    assert len(extract_failures_for_eval("task_success", **TIMES, settings=settings)) == len(dataset) - 10
    (folder / "records.jsonl").unlink()
    assert rebuild_dataset(folder, settings=settings) == dataset
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_dataset_of_results_is_rebuilt_after_scorer_and_results_changed(
    settings: Settings, archived_lake: LakeResource, tmp_path: Path
) -> None:
    (scorer,) = load_scorers(settings.scorers)
    score_window(archived_lake, scorer, RECORDED_WINDOW, "run")
    dataset = extract_failures_for_eval("quality", **TIMES, settings=settings)
    assert dataset
    written = write_dataset(dataset, tmp_path)
    assert manifest_of(tmp_path)["origin"]["scorer_digests"] == {"quality": scorer.digest}
    assert set(manifest_of(tmp_path)["origin"]["versions"]) == {"agent_traces", "assessments"}
    archived_lake.replace(ASSESSMENTS, RECORDED_WINDOW, ASSESSMENTS.schema.empty_table())
    without = settings.model_copy(update={"scorers": []})
    assert digest_of(rebuild_dataset(tmp_path, settings=without)) == written.digest


def test_a_sample_by_meaning_is_rebuilt_with_its_function(settings: Settings, tmp_path: Path) -> None:
    def embed(texts: list[str]) -> list[list[float]]:
        return [[float(len(text))] for text in texts]

    dataset = build_diverse_eval_dataset(sample_size=200, embed=embed, **TIMES, settings=settings)
    write_dataset(dataset, tmp_path)
    with pytest.raises(MonitoringError, match="the sample was drawn by meaning; pass the embedding function"):
        rebuild_dataset(tmp_path, settings=settings)
    assert rebuild_dataset(tmp_path, embed, settings) == dataset
    with pytest.raises(MonitoringError, match="the 200 rebuilt records differ from the 200 of the manifest"):
        rebuild_dataset(tmp_path, lambda texts: [[-len(text) % 7.0] for text in texts], settings)


def test_a_version_whose_files_are_gone_is_reported(
    settings: Settings, archived_lake: LakeResource, tmp_path: Path
) -> None:
    dataset = build_dataset_from_traces(**TIMES, max_records=5, settings=settings)
    write_dataset(dataset, tmp_path)
    archived_lake.remove(AGENT_TRACES, RECORDED_WINDOW, "trace_id", [dataset[0]["metadata"]["source_trace"]])
    archived_lake.purge(AGENT_TRACES)
    with pytest.raises(
        MonitoringError, match=r"version \d+ of agent_traces can no longer be read; .*keep_versions_hours"
    ):
        rebuild_dataset(tmp_path, settings=settings)
    assert read_dataset(tmp_path) == dataset


def test_a_version_that_never_existed_is_reported(settings: Settings, tmp_path: Path) -> None:
    dataset = build_dataset_from_traces(**TIMES, max_records=5, settings=settings)
    write_dataset(dataset, tmp_path)
    manifest = manifest_of(tmp_path)
    manifest["origin"]["versions"]["agent_traces"] = 99
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(MonitoringError, match="version 99 of agent_traces can no longer be read"):
        rebuild_dataset(tmp_path, settings=settings)


def test_a_dataset_that_does_not_come_from_the_archive_is_not_rebuilt(settings: Settings, tmp_path: Path) -> None:
    write_dataset(ODD, tmp_path)
    with pytest.raises(MonitoringError, match="written by hand, not from the archive"):
        rebuild_dataset(tmp_path, settings=settings)
    write_dataset(build_dataset_from_traces([], settings=settings), tmp_path)
    with pytest.raises(MonitoringError, match="built from traces that were passed in, not from the archive"):
        rebuild_dataset(tmp_path, settings=settings)


def test_another_lake_yields_other_records(settings: Settings, tmp_path: Path) -> None:
    write_dataset(build_dataset_from_traces(**TIMES, settings=settings), tmp_path)
    manifest = manifest_of(tmp_path)
    manifest["origin"]["query"]["filter"] = "status = 'OK'"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(MonitoringError, match="the 665 rebuilt records differ from the 681 of the manifest"):
        rebuild_dataset(tmp_path, settings=settings)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_dataset_keeps_its_origin(settings: Settings, tmp_path: Path) -> None:
    dataset = build_dataset_from_traces(**TIMES, max_records=2, settings=settings)
    write_dataset(dataset, tmp_path)
    found = read_dataset(tmp_path)
    assert isinstance(found, Dataset)
    assert found.origin == dataset.origin
