"""One definition of a scorer, in `mlflow.genai.evaluate` and in production."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities import Trace
from mlflow.genai import evaluate
from mlflow.genai.utils.trace_utils import extract_inputs_from_trace, extract_outputs_from_trace

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline.scoring.on_demand import assess_traces
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings


def test_a_scorer_returns_the_same_scores_in_development_and_production(
    recorded_traces: list[Trace], lake: LakeResource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = recorded_traces[:12]
    entry = ScorerSettings(
        name="response_quality", scorer=f"{SHIPPED_SCORERS}:response_quality", params={"min_characters": 200}
    )
    (scorer,) = load_scorers([entry])
    monkeypatch.chdir(tmp_path)
    with global_tracking_uri(f"sqlite:///{tmp_path / 'development.db'}"):
        developed = evaluate(
            data=[
                {"inputs": extract_inputs_from_trace(trace), "outputs": extract_outputs_from_trace(trace)}
                for trace in traces
            ],
            scorers=[scorer.scorer],
        )
    produced = assess_traces(lake, [scorer], traces)
    assert developed.result_df is not None
    scores = sorted(developed.result_df["response_quality/value"].astype(float))
    assert scores == sorted(produced["score"])
    assert len(set(scores)) > 1
    assert developed.metrics["response_quality/mean"] == pytest.approx(produced["score"].mean())
