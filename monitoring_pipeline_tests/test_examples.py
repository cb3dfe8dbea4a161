"""Runs the examples unchanged."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline_tests.made_project import MadeProject

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.usefixtures("no_active_experiment")
def test_a_multi_agent_application_is_scored_stage_by_stage(made: MadeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_SCORER_RATE_LIMIT", "0")
    example = runpy.run_path(str(EXAMPLES / "multi_agent.py"))
    with global_tracking_uri(made.settings.mlflow.tracking_uri):
        result = example["run"]().result_df
    questions = [entry["inputs"]["question"] for entry in example["DATASET"]]
    by_question = {row["request"]["question"]: row for row in result.to_dict("records")}

    def values(scorer: str) -> list[object]:
        return [by_question[question].get(f"{scorer}/value") for question in questions]

    # The third question has no keyword, so the classifier fails, and no tool or filter is used.
    assert values("classifier_accuracy") == [True, True, False, True]
    assert values("tool_selection_accuracy") == [1.0, 1.0, 0.0, 1.0]
    assert values("filters_used")[:3] == [True, True, False]
    assert values("stage_latency") == [True, True, True, True]
    spans = {question: [span["name"] for span in by_question[question]["spans"]] for question in questions}
    assert spans[questions[1]] == [
        "assistant",
        "classifier",
        "analyst",
        "account_consumption",
        "account_growth",
        "writer",
    ]
