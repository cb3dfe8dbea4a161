"""A large backlog with samples: every trace in a scorer's sample that passes its filter is scored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from mlflow.entities import Trace, TraceState
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.scoring.sampling import in_sample
from monitoring_pipeline.tables import ASSESSMENTS
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.sources.stores import START, trace_id

TRACES = 4000
WINDOW = Window(START, START + timedelta(hours=2))


def failed(number: int) -> bool:
    return number % 3 == 0


@pytest.fixture(scope="module")
def backlog(spark: SparkResource, tmp_path_factory: pytest.TempPathFactory) -> LakeResource:
    lake = LakeResource(location=str(tmp_path_factory.mktemp("backlog") / "lake"), spark=spark)
    traces = [
        made_trace(number, state=TraceState.ERROR if failed(number) else TraceState.OK) for number in range(TRACES)
    ]
    archive_traces(lake, WINDOW, traces)
    return lake


def test_every_trace_of_each_sample_is_scored_once(backlog: LakeResource) -> None:
    calls: dict[str, list[str]] = {}

    def configured(name: str, rate: float, filter_string: str | None) -> ConfiguredScorer:
        @as_scorer(timeout=0)
        def counting(trace: Trace) -> bool:
            calls.setdefault(name, []).append(trace.info.trace_id)
            return True

        return ConfiguredScorer(name, counting, "d" * 16, rate, filter_string)

    def expected(name: str, rate: float, passes: Callable[[int], bool]) -> list[str]:
        ids = [trace_id(number) for number in range(TRACES) if passes(number)]
        return sorted(each for each in ids if in_sample(each, name, rate))

    wanted = {
        "rare": expected("rare", 0.002, lambda number: True),
        "of_errors": expected("of_errors", 0.01, failed),
        "of_others": expected("of_others", 0.01, lambda number: not failed(number)),
    }
    for name, rate, filter_string in (
        ("rare", 0.002, None),
        ("of_errors", 0.01, "attributes.status = 'ERROR'"),
        ("of_others", 0.01, "attributes.status = 'OK'"),
    ):
        score_window(backlog, configured(name, rate, filter_string), WINDOW, "run")
        score_window(backlog, configured(name, rate, filter_string), WINDOW, "again")
    assert {name: sorted(found) for name, found in calls.items()} == wanted
    rows = backlog.read_columns(ASSESSMENTS, WINDOW, "scorer", "trace_id").to_pylist()
    assert sorted((row["scorer"], row["trace_id"]) for row in rows) == sorted(
        (name, each) for name, ids in wanted.items() for each in ids
    )
    assert all(wanted.values())
