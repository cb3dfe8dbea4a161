"""A backfill by a judge, killed with SIGKILL at random moments and continued each time.

MONITORING_LONG_TESTS=1 runs it in full: 5,000 traces and twenty kills.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring import run as scoring
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, SCORER_COVERAGE
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests import forks
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.scoring.model_double import ModelDouble
from monitoring_pipeline_tests.sources.stores import START

LONG = os.environ.get("MONITORING_LONG_TESTS") == "1"
TRACES, KILLS, COMMIT = (5000, 20, 200) if LONG else (400, 3, 40)
WINDOW = Window(START, START + timedelta(days=2))
UNREPEATABLE = {"assessed_at", "duration_ms", "dagster_run_id", "date"}


@pytest.fixture(scope="module")
def double() -> Iterator[ModelDouble]:
    # A different answer for each trace; some are not a verdict.
    def answer(prompt: str) -> dict[str, Any]:
        number = _number(prompt)
        return {"result": ("yes", "no", "yes", "perhaps")[number % 4], "rationale": f"because of {number}"}

    double = ModelDouble(answer=answer)
    yield double
    double.close()


@pytest.fixture
def model(double: ModelDouble, monkeypatch: pytest.MonkeyPatch) -> ModelDouble:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-double")
    monkeypatch.setenv("OPENAI_API_BASE", double.address)
    double.requests.clear()
    return double


@pytest.fixture(scope="module")
def archived_once(spark: SparkResource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "lake"
    spread = timedelta(days=2) / TRACES
    traces = [made_trace(number, START + number * spread) for number in range(TRACES)]
    archive_traces(LakeResource(location=str(folder), spark=spark), WINDOW, traces)
    return folder


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """A process context with everything imported and no thread of this process."""
    return forks.context()


def judge() -> ConfiguredScorer:
    (scorer,) = load_scorers(
        [ScorerSettings(name="safe", builtin="Safety", model="openai:/gpt-4o-mini", sample_rate=0.9)]
    )
    return scorer


def score(location: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    scoring.COMMIT_RESULTS = COMMIT
    score_window(LakeResource(location=location, spark=SparkResource()), judge(), WINDOW, "run")


def rows(lake: LakeResource) -> list[list[dict[str, Any]]]:
    """The rows of the tables, without columns that differ between runs."""
    found = []
    for table in (ASSESSMENTS, SCORER_COVERAGE):
        columns = [name for name in table.schema.names if name not in UNREPEATABLE]
        content = lake.read_columns(table, WINDOW, *columns).to_pylist()
        found.append(sorted(content, key=lambda row: str([row[name] for name in table.key])))
    return found


def _number(prompt: str) -> int:
    match = re.search(r"answer (\d+)\.", prompt)
    assert match
    return int(match[1])


def test_a_repeatedly_killed_backfill_ends_like_an_undisturbed_one(
    archived_once: Path, spark: SparkResource, processes: ForkServerContext, model: ModelDouble, tmp_path: Path
) -> None:
    environment = {name: os.environ[name] for name in ("OPENAI_API_KEY", "OPENAI_API_BASE")}
    calm, killed = (LakeResource(location=str(tmp_path / name), spark=spark) for name in ("calm", "killed"))
    for lake in (calm, killed):
        shutil.copytree(archived_once, lake.location)
    run = processes.Process(target=score, args=(calm.location, environment))
    run.start()
    run.join(300)
    assert run.exitcode == 0
    undisturbed_calls = len(model.requests)
    seconds_of_calls = model.requests[-1].arrived - model.requests[0].arrived

    model.requests.clear()
    moments, kills, repeated = random.Random(20), 0, 0
    for attempt in range(10 * KILLS):
        before = Counter(_number(request.prompt) for request in model.requests)
        run = processes.Process(target=score, args=(killed.location, environment))
        run.start()
        if kills < KILLS:
            first_call = len(model.requests)
            while len(model.requests) == first_call and run.is_alive():
                time.sleep(0.01)
            run.join(moments.uniform(0, seconds_of_calls / KILLS))
            run.kill()
        run.join(300)
        again = sum(_number(request.prompt) in before for request in model.requests[sum(before.values()) :])
        assert again <= COMMIT, f"attempt {attempt} repeated {again} calls"
        repeated += again
        if run.exitcode == 0:
            break
        assert run.exitcode == -signal.SIGKILL
        kills += 1

    assert run.exitcode == 0
    assert kills == KILLS
    assert rows(killed) == rows(calm)
    assert {row["error_code"] for row in rows(calm)[0]} == {None, "MALFORMED_OUTPUT"}
    assert ledger_problems(killed, [judge()], WINDOW) == []
    assert len(model.requests) == undisturbed_calls + repeated
    assert 0.85 * TRACES < undisturbed_calls < killed.read(AGENT_TRACES, WINDOW).count()
    print(f"{TRACES} traces, {kills} kills: {repeated} calls repeated of {undisturbed_calls}")
