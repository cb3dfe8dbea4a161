"""Datasets of the recorded conversations, against their file, and of made traces for other cases."""

from __future__ import annotations

import json
import random
import time
from datetime import timedelta
from types import ModuleType
from typing import Any

import mlflow
import pytest
from mlflow.entities import AssessmentSource, Expectation, Feedback, Trace, TraceState
from mlflow.entities.assessment_error import AssessmentError

from monitoring_pipeline.api import (
    build_dataset_from_tagged_traces,
    build_dataset_from_traces,
    build_dataset_with_expectations,
    build_diverse_eval_dataset,
    build_regression_tests,
    extract_failures_for_eval,
)
from monitoring_pipeline.datasets.diverse import latency_bucket
from monitoring_pipeline.datasets.records import Record
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings, Settings
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.datasets.recorded import TIMES, Turn, settings_of, turns_of
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.sources.stores import START, trace_id

DAY = Window(START, START + timedelta(hours=1))
MADE: dict[str, Any] = {"start_time": DAY.start, "end_time": DAY.end}
PERSON = AssessmentSource("HUMAN", "ada")
PROGRAM = AssessmentSource("CODE", "checker")


@pytest.fixture(scope="module")
def turns(recorded_conversations: list[dict], load_tau: ModuleType) -> dict[str, Turn]:
    return {turn.trace_id: turn for turn in turns_of(recorded_conversations, load_tau)}


@pytest.fixture
def settings(archived_lake: LakeResource, recorded_store: str) -> Settings:
    return settings_of(archived_lake, recorded_store)


def sources(records: list[Record]) -> list[str]:
    return [record["metadata"]["source_trace"] for record in records]


# The recorded conversations


def test_production_traces_are_the_turns_of_the_file(settings: Settings, turns: dict[str, Turn]) -> None:
    records = build_dataset_from_traces(**TIMES, settings=settings)
    assert len(records) == len(turns) == 681
    for record in records:
        turn = turns[record["metadata"]["source_trace"]]
        assert (record["inputs"], record["outputs"]) == (turn.inputs, turn.outputs)
        assert record["metadata"]["session_id"] == turn.session
        expected = None if turn.expected_tools is None else {"expected_tools": turn.expected_tools}
        assert record.get("expectations") == expected
    assert len({record["metadata"]["test_id"] for record in records}) == len(records)


def test_the_newest_come_first(settings: Settings, recorded_traces: list[Trace]) -> None:
    newest = sorted(recorded_traces, key=lambda trace: (-trace.info.request_time, trace.info.trace_id))
    records = build_dataset_from_traces(**TIMES, max_records=30, with_outputs=False, settings=settings)
    assert sources(records) == [trace.info.trace_id for trace in newest[:30]]
    assert all(set(record) <= {"inputs", "expectations", "metadata"} for record in records)
    hours = [f"{RECORDED_WINDOW.start + timedelta(hours=47):%Y-%m-%dT%H:%MZ}"]
    assert [record["metadata"]["trace_hour"] for record in records[:1]] == hours


def test_a_filter_and_an_hour(settings: Settings, recorded_traces: list[Trace]) -> None:
    start = RECORDED_WINDOW.start + 10 * HOUR
    failed = {
        trace.info.trace_id
        for trace in recorded_traces
        if trace.info.state == TraceState.ERROR and trace.info.request_time >= start.timestamp() * 1000
    }
    records = build_dataset_from_traces(
        start_time=start, end_time=RECORDED_WINDOW.end, filter_string="status = 'ERROR'", settings=settings
    )
    assert set(sources(records)) == failed
    assert failed


def test_traces_of_a_search_yield_the_same_records(
    settings: Settings, recorded_store: str, turns: dict[str, Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", recorded_store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded_store)
    experiment = mlflow.get_experiment_by_name("airline")
    assert experiment is not None
    table = mlflow.search_traces(
        locations=[experiment.experiment_id],
        max_results=20,
        order_by=["timestamp_ms DESC"],
    )
    given = build_dataset_from_traces(table, settings=settings)
    archived = build_dataset_from_traces(**TIMES, max_records=20, settings=settings)
    assert given == archived
    assert given.origin is not None
    assert not given.origin.versions
    with pytest.raises(MonitoringError, match="give either traces, or start_time and end_time"):
        build_dataset_from_traces(table, **TIMES, settings=settings)


def test_logged_expectations_are_the_ground_truth(settings: Settings, turns: dict[str, Turn]) -> None:
    records = build_dataset_with_expectations(**TIMES, settings=settings)
    assert {record["metadata"]["source_trace"]: record["expectations"] for record in records} == {
        turn.trace_id: {"expected_tools": turn.expected_tools}
        for turn in turns.values()
        if turn.expected_tools is not None
    }


def test_tagged_traces(settings: Settings, turns: dict[str, Turn]) -> None:
    of_task = build_dataset_from_tagged_traces("task_id", "3", **TIMES, settings=settings)
    assert set(sources(of_task)) == {turn.trace_id for turn in turns.values() if turn.task_id == "3"}
    assert {(record["metadata"]["tag"], record["metadata"]["tag_value"]) for record in of_task} == {("task_id", "3")}
    everything = build_dataset_from_tagged_traces("task_id", **TIMES, settings=settings)
    assert {record["metadata"]["source_trace"]: record["metadata"]["tag_value"] for record in everything} == {
        turn.trace_id: turn.task_id for turn in turns.values()
    }
    assert build_dataset_from_tagged_traces("task_id' OR '1", "3", **TIMES, settings=settings) == []


@pytest.mark.parametrize("build", [extract_failures_for_eval, build_regression_tests])
def test_conversations_that_did_not_succeed(build: Any, settings: Settings, turns: dict[str, Turn]) -> None:
    records = build("task_success", **TIMES, settings=settings)
    failed = {turn.trace_id: turn for turn in turns.values() if turn.succeeded is False}
    assert len(failed) == 57
    assert set(sources(records)) == set(failed)
    for record in records:
        assert record["expectations"]["expected_tools"] == failed[record["metadata"]["source_trace"]].expected_tools
        assert (record["metadata"]["scorer"], record["metadata"]["original_score"]) == ("task_success", 0.0)
    assert ("outputs" in records[0]) == (build is extract_failures_for_eval)


def test_an_unknown_name_of_scorer_or_feedback_is_refused(settings: Settings) -> None:
    with pytest.raises(MonitoringError, match=r"named 'task_sucess'; scorers are .*; feedback .* is task_success$"):
        extract_failures_for_eval("task_sucess", **TIMES, settings=settings)


def test_a_diverse_sample_covers_all_strata_of_the_conversations(
    settings: Settings, turns: dict[str, Turn], recorded_traces: list[Trace]
) -> None:
    def stratum(trace: Trace) -> tuple[Any, ...]:
        bucket = latency_bucket(trace.info.execution_duration)
        return trace.info.state, bucket, turns[trace.info.trace_id].tools

    by_id = {trace.info.trace_id: stratum(trace) for trace in recorded_traces}
    small = build_diverse_eval_dataset(sample_size=40, **TIMES, settings=settings)
    strata = {by_id[source] for source in sources(small)}
    assert len(small) == len(strata) == 40
    assert {one[:2] for one in by_id.values()} == {one[:2] for one in strata}
    everything = build_diverse_eval_dataset(sample_size=1000, **TIMES, settings=settings)
    assert len(everything) == len({json.dumps(turn.inputs) for turn in turns.values()}) < 681


def test_a_sample_by_meaning_does_not_depend_on_the_order_of_traces(
    settings: Settings, recorded_traces: list[Trace]
) -> None:
    def embed(texts: list[str]) -> list[list[float]]:
        return [[float(len(text)), float(text.count(" "))] for text in texts]

    some = recorded_traces[:60]
    shuffled = random.Random(3).sample(some, len(some))
    sample = build_diverse_eval_dataset(some, 40, 5, embed, settings=settings)
    assert build_diverse_eval_dataset(shuffled, 40, 5, embed, settings=settings) == sample
    assert build_diverse_eval_dataset(some, 40, 5, settings=settings) != sample
    assert len(sample) == 40


# Made traces for cases that the recorded ones lack


def recorded_as(name: str, value: Any, source: AssessmentSource = PROGRAM, minute: int = 0, **more: Any) -> Feedback:
    stamp = round((START + timedelta(minutes=minute)).timestamp() * 1000)
    return Feedback(name=name, value=value, source=source, create_time_ms=stamp, last_update_time_ms=stamp, **more)


def expected(name: str, value: Any, minute: int = 0) -> Expectation:
    stamp = round((START + timedelta(minutes=minute)).timestamp() * 1000)
    return Expectation(name=name, value=value, source=PERSON, create_time_ms=stamp, last_update_time_ms=stamp)


@pytest.fixture
def project(lake: LakeResource) -> Settings:
    """Settings of an empty archive."""
    return settings_of(lake, "sqlite:///nowhere.db")


def put(settings: Settings, *traces: Trace) -> LakeResource:
    lake = build_resources(settings)["lake"]
    archive_traces(lake, DAY, traces)
    return lake


def test_unfinished_traces_and_those_without_inputs_are_left_out(project: Settings) -> None:
    bare = made_trace(3)
    bare.info.request_preview = None
    bare.data.spans.clear()
    put(project, made_trace(1), made_trace(2, state=TraceState.IN_PROGRESS), bare)
    dataset = build_dataset_from_traces(**MADE, settings=project)
    assert sources(dataset) == [trace_id(1)]
    assert dataset.origin is not None
    assert dataset.origin.without_inputs == 1


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ('{"q": "ü"}', {"q": "ü"}),
        ('"only text"', {"input": "only text"}),
        ("[1, 2]", {"input": [1, 2]}),
        ('{"q": NaN}', {"input": '{"q": NaN}'}),
        ("no JSON {", {"input": "no JSON {"}),
        ("[" * 100_000, {"input": "[" * 100_000}),
        ('{"q": "\\ud800"}', {"q": "\ud800"}),
    ],
    ids=["object", "text", "list", "nan", "no json", "deep", "surrogate"],
)
def test_inputs_of_any_kind_become_a_dictionary(text: str, inputs: dict[str, Any], project: Settings) -> None:
    trace = made_trace(1)
    trace.data.spans.clear()
    trace.info.request_preview = text
    put(project, trace)
    assert build_dataset_from_traces(**MADE, settings=project)[0]["inputs"] == inputs


def test_the_latest_of_several_expectations_counts_and_feedback_does_not(project: Settings) -> None:
    entries = [
        expected("facts", ["new"], minute=2),
        expected("facts", ["old"], minute=1),
        expected("tone", {"polite": True}),
        recorded_as("length", 7),
    ]
    put(project, made_trace(1, assessments=entries), made_trace(2, assessments=[recorded_as("length", 7)]))
    records = build_dataset_with_expectations(**MADE, settings=project)
    assert [record["expectations"] for record in records] == [{"facts": ["new"], "tone": {"polite": True}}]


def test_hours_are_utc_in_any_time_zone(project: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, made_trace(1))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        (record,) = build_dataset_from_traces(**MADE, settings=project)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert record["metadata"]["trace_hour"] == "2026-01-01T05:00Z"


def test_an_experiment(project: Settings) -> None:
    put(project, made_trace(1))
    assert len(build_dataset_from_traces(**MADE, experiment_id="1", settings=project)) == 1
    assert build_dataset_from_traces(**MADE, experiment_id="2", settings=project) == []


def test_whose_feedback_counts(project: Settings) -> None:
    no, yes = ("no", PROGRAM, 1), ("yes", PROGRAM, 2)
    verdicts: dict[int, list[tuple[Any, AssessmentSource, int]]] = {
        1: [no],
        2: [yes],
        3: [no, yes],  # the later one
        4: [yes, (False, PERSON, 0)],  # a person's
        5: [no, (True, PERSON, 0)],
        6: [(0.4, PROGRAM, 0)],
        7: [(0.5, PROGRAM, 0)],
        8: [("unclear", PROGRAM, 0)],
        9: [],
    }
    broken = recorded_as("ok", None, error=AssessmentError("E", "broken"))
    traces = [
        made_trace(number, assessments=[recorded_as("ok", *verdict) for verdict in given])
        for number, given in verdicts.items()
    ]
    put(
        project, *traces, made_trace(10, assessments=[broken]), made_trace(11, assessments=[recorded_as("other", "no")])
    )
    assert sorted(sources(extract_failures_for_eval("ok", **MADE, settings=project))) == [
        trace_id(number) for number in (1, 4, 6)
    ]
    low = build_regression_tests("ok", 0.45, **MADE, settings=project)
    assert {record["metadata"]["source_trace"]: record["metadata"]["original_score"] for record in low} == {
        trace_id(1): 0.0,
        trace_id(4): 0.0,
        trace_id(6): 0.4,
    }


def test_feedback_of_a_run(project: Settings) -> None:
    of_run = {"mlflow.assessment.sourceRunId": "r1"}
    of_other = {"mlflow.assessment.sourceRunId": "r2"}
    logged = {"trace_metadata": {"mlflow.sourceRun": "r1"}}

    def trace(number: int, value: str, metadata: dict[str, str] | None = None, **info: Any) -> Trace:
        entry = recorded_as("concise", value, metadata=metadata, rationale=f"why {number}")
        made = made_trace(number, assessments=[entry])
        made.info.trace_metadata.update(info.get("trace_metadata", {}))
        return made

    put(
        project,
        trace(1, "no", of_run),
        trace(2, "no", of_other),
        trace(3, "yes", of_run),
        trace(4, "no", None, **logged),
        trace(5, "no", of_other, **logged),
        trace(6, "no"),
    )
    failures = extract_failures_for_eval(run_id="r1", scorer_name="concise", settings=project)
    assert {record["metadata"]["source_trace"]: record["metadata"]["failure_reason"] for record in failures} == {
        trace_id(1): "why 1",
        trace_id(4): "why 4",
    }
    assert [record["inputs"] for record in failures] == [{"question": "question 4"}, {"question": "question 1"}]


def test_results_of_a_scorer_count_by_its_own_rule_and_digest(project: Settings) -> None:
    answers = {1: "fine and long enough", 2: "short", 3: "an error of ten", 4: " "}
    traces = [
        made_trace(number, answer=answer, assessments=[recorded_as("quality", "no")])
        for number, answer in answers.items()
    ]
    traces[1].info.assessments.append(recorded_as("quality", True, PERSON))
    lake = put(project, *traces)

    def scored(**values: Any) -> Settings:
        entry = ScorerSettings(name="quality", scorer=f"{SHIPPED_SCORERS}:response_quality", **values)
        (scorer,) = load_scorers([entry])
        score_window(lake, scorer, DAY, "run")
        return project.model_copy(update={"scorers": [entry]})

    def failed(settings: Settings) -> dict[str, float]:
        records = extract_failures_for_eval("quality", **MADE, settings=settings)
        (digest,) = {record["metadata"].get("scorer_digest") for record in records} or {None}
        assert records == [] or digest == load_scorers(settings.scorers)[0].digest
        return {record["metadata"]["source_trace"]: record["metadata"]["original_score"] for record in records}

    strict = scored(pass_if=">= 0.8")
    assert failed(strict) == {trace_id(3): 0.7, trace_id(4): 0.0}  # a person disagreed on 2, a program on 1
    assert failed(scored()) == {trace_id(4): 0.0}
    changed = scored(pass_if=">= 0.8", params={"error_keyword": "mistake"})
    assert failed(changed) == {trace_id(4): 0.0}
    assert build_regression_tests("quality", 0.75, **MADE, settings=strict)[1]["metadata"]["original_score"] == 0.7
    reasons = [
        record["metadata"]["failure_reason"] for record in extract_failures_for_eval("quality", **MADE, settings=strict)
    ]
    assert reasons == ["empty response", "contains 'error'"]


def test_wrong_parameters_are_reported(project: Settings) -> None:
    with pytest.raises(MonitoringError, match="trace filter 'nonsense'"):
        build_dataset_from_traces(**MADE, filter_string="nonsense", settings=project)
    with pytest.raises(MonitoringError, match=r"^sample_size = 0: input should be greater than or equal to 1$"):
        build_diverse_eval_dataset(sample_size=0, **MADE, settings=project)
    with pytest.raises(MonitoringError, match=r"^threshold = nan: input should be a finite number$"):
        build_regression_tests("ok", float("nan"), **MADE, settings=project)
    with pytest.raises(MonitoringError, match=r"^tag = '': string should have at least 1 character$"):
        build_dataset_from_tagged_traces("", **MADE, settings=project)


def test_without_times_the_last_seven_days_count(project: Settings) -> None:
    put(project, made_trace(1))
    end = START + timedelta(days=7)
    assert sources(build_dataset_from_traces(end_time=end, settings=project)) == [trace_id(1)]
    assert build_dataset_from_traces(end_time=end + HOUR, settings=project) == []
    assert build_dataset_from_traces(settings=project) == []


def test_a_dataset_records_its_origin(project: Settings) -> None:
    lake = put(project, made_trace(1))
    dataset = build_diverse_eval_dataset(**MADE, settings=project)
    assert dataset.origin is not None
    assert dataset.origin.versions == {"agent_traces": lake.version(AGENT_TRACES)}
    assert dataset.origin.query == {
        "kind": "diverse",
        "with_outputs": True,
        "sample_size": 50,
        "seed": 0,
        "embedded": False,
        "start": "2026-01-01T05:00:00Z",
        "end": "2026-01-01T06:00:00Z",
    }
