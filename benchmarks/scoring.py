"""Four code scorers on archived traces, against `mlflow.genai.evaluate` of the same traces without its rate limit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.measuring import Result, check_answers, faster, measured, medians
from benchmarks.stores import DAYS, EXPERIMENT, START, fill_store

TRACES, SMALL_TRACES = 5_000, 300
CHECKED_TRACES = 200  # evaluate takes minutes for all
SCORERS = ("response_quality", "tool_errors", "stage_latency", "answer_words")
Answers = dict[str, dict[str, Any]]


def subject(folder: Path, small: bool) -> Iterator[Result]:
    """One round of evaluate, three of ours; the answers are compared on a smaller store beforehand."""
    traces = SMALL_TRACES if small else TRACES
    checked, full = folder / "checked", folder / "full"
    make(checked, min(CHECKED_TRACES, traces))
    check_answers(score, evaluate, str(checked))
    make(full, traces)
    ours = medians([measured(score, str(full))[0] for _ in range(1 if small else 3)])
    instead, _ = measured(evaluate, str(full))
    yield faster(f"four code scorers on {traces:,} traces, against mlflow.genai.evaluate", ours, instead, 50, 1)


def make(folder: Path, traces: int) -> None:
    """A store, and the archive of its traces."""
    from monitoring_pipeline.archive.window import archive_window
    from monitoring_pipeline.resources.tracking import TrackingResource
    from monitoring_pipeline.settings import ArchiveSettings

    tracking = TrackingResource(tracking_uri=fill_store(folder, traces), experiments=[EXPERIMENT])
    archive_window(ArchiveSettings(source="mlflow-sql"), tracking, _lake(folder / "lake"), _week())


def score(folder: str) -> Generator[None, None, Answers]:
    from monitoring_pipeline.scoring.registry import load_scorers
    from monitoring_pipeline.scoring.run import score_window
    from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings
    from monitoring_pipeline.tables import ASSESSMENTS

    shutil.copytree(f"{folder}/lake", "lake")
    lake = _lake(Path("lake"))
    modules = dict.fromkeys(SCORERS, SHIPPED_SCORERS) | {"answer_words": "benchmarks.scorers"}
    scorers = load_scorers([ScorerSettings(name=name, scorer=f"{modules[name]}:{name}") for name in SCORERS])
    lake.spark.session.sql("SELECT 1").toArrow()
    yield
    for scorer in scorers:
        score_window(lake, scorer, _week(), "benchmark")
    yield
    answers: Answers = {}
    for row in lake.read_columns(ASSESSMENTS, _week(), "trace_id", "scorer", "value").to_pylist():
        answers.setdefault(row["trace_id"], {})[row["scorer"]] = _plain(json.loads(row["value"]))
    return answers


def evaluate(folder: str) -> Generator[None, None, Answers]:
    os.environ |= {"MLFLOW_GENAI_EVAL_SCORER_RATE_LIMIT": "0", "MLFLOW_GENAI_EVAL_PREDICT_RATE_LIMIT": "0"}
    import mlflow

    from benchmarks.scorers import answer_words
    from monitoring_pipeline.scoring.scorers import response_quality, stage_latency, tool_errors

    shutil.copy(f"{folder}/mlflow.db", "mlflow.db")  # evaluate writes its results there
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    experiment = mlflow.set_experiment(EXPERIMENT)
    traces = mlflow.search_traces(
        locations=[experiment.experiment_id], include_spans=True, return_type="list", max_results=10**9
    )
    scorers = [response_quality, tool_errors, stage_latency, answer_words]
    yield
    evaluated = mlflow.genai.evaluate(data=traces, scorers=scorers)
    yield
    frame = evaluated.result_df
    assert frame is not None
    answers: Answers = {}
    for row in frame.to_dict("records"):
        found = {name: row.get(f"{name}/value") for name in SCORERS}
        found = {name: _plain(value) for name, value in found.items() if value is not None and value == value}
        if found:
            answers[row["trace_id"]] = found
    return answers


def _plain(value: Any) -> Any:
    """Numbers as floats: in a DataFrame, a column with missing integers holds floats."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _week() -> Any:
    from monitoring_pipeline.windows import Window

    return Window(START, START + timedelta(days=DAYS))


def _lake(folder: Path) -> Any:
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.spark import SparkResource

    return LakeResource(location=str(folder), spark=SparkResource())
