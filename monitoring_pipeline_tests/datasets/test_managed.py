"""Datasets in MLflow: added and unchanged records, and evaluations on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow.genai import evaluate
from mlflow.genai.datasets import create_dataset, get_dataset
from mlflow.genai.scorers import scorer

from monitoring_pipeline.api import (
    build_dataset_from_traces,
    extract_failures_for_eval,
    merge_into_mlflow_dataset,
    validate_dataset,
    with_traces,
    write_dataset,
)
from monitoring_pipeline.errors import MonitoringError, TrackingError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline.scoring.scorers import tool_selection_accuracy
from monitoring_pipeline.settings import Settings
from monitoring_pipeline_tests.datasets.recorded import TIMES, settings_of, turns_of

RECORD: dict[str, Any] = {
    "inputs": {"q": "a"},
    "outputs": "b",
    "expectations": {"expected_query_type": None, "expected_response": None, "expected_tools": []},
    "metadata": {"test_id": "t", "source_trace": "tr-1", "original_score": 0.5, "session_id": "s", "note": "x" * 9999},
}


@pytest.fixture
def settings(
    archived_lake: LakeResource, recorded_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """Settings of the test's own store with the recorded conversations, which is also MLflow's global store."""
    shutil.copy(recorded_store.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "airline")
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_SCORER_RATE_LIMIT", "0")
    with global_tracking_uri(uri):
        yield settings_of(archived_lake, uri)


def rows(name: str) -> list[dict[str, Any]]:
    return get_dataset(name).to_df().to_dict("records")


def test_failed_conversations_become_a_dataset_that_is_evaluated_on_what_happened(
    settings: Settings, recorded_conversations: list[dict], load_tau: ModuleType
) -> None:
    failures = extract_failures_for_eval("task_success", **TIMES, settings=settings)
    merged = merge_into_mlflow_dataset(failures, "regression", settings)
    assert (merged.added, merged.records) == (57, 57)
    again = merge_into_mlflow_dataset(
        extract_failures_for_eval("task_success", **TIMES, settings=settings), "regression", settings
    )
    assert (again.dataset_id, again.added, again.records) == (merged.dataset_id, 0, 57)
    assert len(rows("regression")) == 57

    replayed = with_traces(get_dataset("regression"), settings)
    turns = {turn.trace_id: turn for turn in turns_of(recorded_conversations, load_tau)}
    assert {row["trace"].info.trace_id for row in replayed} == {
        turn.trace_id for turn in turns.values() if turn.succeeded is False
    }
    some = [row for row in replayed if turns[row["trace"].info.trace_id].tools][:8]
    result = evaluate(data=some, scorers=[tool_selection_accuracy]).result_df
    assert result is not None
    scores = dict(zip(result["trace_id"], result["tool_selection_accuracy/value"], strict=True))
    assert scores == pytest.approx(
        {row["trace"].info.trace_id: overlap(turns[row["trace"].info.trace_id]) for row in some}
    )
    assert len(set(scores.values())) > 2


def overlap(turn: Any) -> float:
    """Common tools by all tools, computed without the scorer."""
    either = {*turn.tools, *turn.expected_tools}
    most = sum(max(turn.tools.count(tool), turn.expected_tools.count(tool)) for tool in either)
    return sum(min(turn.tools.count(tool), turn.expected_tools.count(tool)) for tool in either) / most if most else 1.0


def test_records_with_outputs_are_evaluated_as_they_are(settings: Settings) -> None:
    @scorer
    def said(outputs: Any, expectations: dict[str, Any]) -> str:
        return f"{outputs} {sorted(expectations)}"

    records = validate_dataset([RECORD, {"inputs": {"q": "c"}, "outputs": "d"}])
    result = evaluate(data=records, scorers=[said]).result_df
    assert result is not None
    assert sorted(result["said/value"]) == ["b ['expected_query_type', 'expected_tools']", "d []"]


def test_a_record_in_mlflow_has_its_metadata_as_tags_and_its_trace_as_source(settings: Settings) -> None:
    merge_into_mlflow_dataset([RECORD], "one", settings)
    (row,) = rows("one")
    assert (row["inputs"], row["outputs"]) == ({"q": "a"}, "b")
    assert row["expectations"] == {"expected_query_type": "none", "expected_tools": []}
    tags = {name: value for name, value in row["tags"].items() if not name.startswith("mlflow.")}
    assert tags == {
        "test_id": "t",
        "source_trace": "tr-1",
        "original_score": "0.5",
        "session_id": "s",
        "note": "x" * 500,
    }
    assert (row["source_type"], row["source_id"]) == ("TRACE", "tr-1")
    assert row["source"].source_data == {"trace_id": "tr-1", "session_id": "s"}


def test_corrections_by_people_are_kept(settings: Settings) -> None:
    merge_into_mlflow_dataset([RECORD], "curated", settings)
    get_dataset("curated").merge_records([{"inputs": {"q": "a"}, "expectations": {"expected_tools": ["by hand"]}}])
    other = {**RECORD, "outputs": "another", "metadata": {"source_trace": "tr-2"}}
    merged = merge_into_mlflow_dataset(
        [other, {"inputs": {"q": "b"}}, {"inputs": {"q": "b"}, "outputs": 1}], "curated", settings
    )
    assert (merged.added, merged.records) == (1, 2)
    (row,) = [row for row in rows("curated") if row["inputs"] == {"q": "a"}]
    assert row["expectations"]["expected_tools"] == ["by hand"]
    assert (row["outputs"], row["tags"]["source_trace"], row["source_id"]) == ("b", "tr-1", "tr-1")


def test_an_existing_dataset_is_used_and_a_new_one_belongs_to_the_experiments(settings: Settings) -> None:
    there = create_dataset(name="there", experiment_id="0")
    assert merge_into_mlflow_dataset([RECORD], "there", settings).dataset_id == there.dataset_id
    merge_into_mlflow_dataset([], "made", settings)
    made = get_dataset("made")
    assert made.experiment_ids == [experiment_id(settings)]
    assert made.to_df().empty


def experiment_id(settings: Settings) -> str:
    from mlflow import MlflowClient

    experiment = MlflowClient(settings.mlflow.tracking_uri).get_experiment_by_name("airline")
    assert experiment is not None
    return experiment.experiment_id


def test_two_datasets_of_one_name_are_reported(settings: Settings) -> None:
    ids = [create_dataset(name="twice", experiment_id="0").dataset_id for _ in range(2)]
    with pytest.raises(MonitoringError, match=r"^more than one MLflow dataset is named 'twice' \(") as raised:
        merge_into_mlflow_dataset([RECORD], "twice", settings)
    assert all(dataset_id in str(raised.value) for dataset_id in ids)


def test_a_refusal_of_mlflow_is_reported(settings: Settings) -> None:
    with pytest.raises(MonitoringError, match=r"^dataset name \"it's\": a name must not contain .* or a backslash; "):
        merge_into_mlflow_dataset([RECORD], "it's", settings)
    with pytest.raises(TrackingError, match="cannot mix session fields"):
        merge_into_mlflow_dataset([{"inputs": {"goal": "x", "q": "y"}}], "mixed", settings)
    nowhere = settings.mlflow.model_copy(update={"tracking_uri": "sqlite:///nowhere.db"})
    with pytest.raises(TrackingError, match="no such file"):
        merge_into_mlflow_dataset([RECORD], "any", settings.model_copy(update={"mlflow": nowhere}))


def test_records_without_a_trace_of_the_archive_cannot_be_replayed(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(MonitoringError, match=r"^record 0 does not name its trace"):
        with_traces([{"inputs": {"q": 1}}], settings)
    records = build_dataset_from_traces(**TIMES, max_records=3, settings=settings)
    write_dataset(records, tmp_path / "files")
    assert [row["trace"].info.trace_id for row in with_traces(records, settings)] == [
        record["metadata"]["source_trace"] for record in records
    ]
    records[1]["metadata"]["source_trace"] = "tr-gone"
    with pytest.raises(MonitoringError, match="no trace tr-gone in the archive"):
        with_traces(records, settings)
    assert with_traces([], settings) == []
