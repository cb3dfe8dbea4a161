"""Assessment from notebooks: accepted traces and scorers, results, logging, and errors."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.genai.judges import make_judge
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.analysis.verdicts import as_score
from monitoring_pipeline.api import assess, evaluate_production_traces
from monitoring_pipeline.errors import MonitoringError, TrackingError
from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline.scoring import on_demand
from monitoring_pipeline.scoring.on_demand import COLUMNS
from monitoring_pipeline.scoring.scorers import response_quality, stage_latency
from monitoring_pipeline.windows import HOUR
from monitoring_pipeline_tests import odd_scorers
from monitoring_pipeline_tests.made_project import IDS, QUALITY, WINDOW, MadeProject, scorer, traces
from monitoring_pipeline_tests.scoring.model_double import ModelDouble
from monitoring_pipeline_tests.sources.stores import START, trace_id

ODD = "monitoring_pipeline_tests.odd_scorers"
NUMBER, EVEN = scorer("number", f"{ODD}:number"), scorer("even", f"{ODD}:even")
RANGE: dict[str, Any] = {"start_time": WINDOW.start, "end_time": WINDOW.end}


def ids(frame: pd.DataFrame) -> set[str]:
    return set(frame["trace_id"])


# Which traces


def test_a_list_of_traces_needs_neither_archive_nor_store(made: MadeProject, tmp_path: Path) -> None:
    lake = made.settings.lake.model_copy(update={"location": str(tmp_path / "no lake")})
    mlflow = made.settings.mlflow.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    settings = made.settings.model_copy(update={"lake": lake, "mlflow": mlflow})
    given = traces()[7:12]
    results = assess(given, settings=settings)
    assert list(results.columns) == COLUMNS
    assert [(row.trace_id, row.scorer) for row in results.itertuples()] == [
        (trace_id(number), name) for number in range(7, 12) for name in ("response_quality", "stage_latency")
    ]
    assert not (tmp_path / "no lake").exists()


def test_the_table_of_search_traces_is_accepted(recorded_server: str, made: MadeProject) -> None:
    experiment = MlflowClient(recorded_server).get_experiment_by_name("airline")
    assert experiment is not None
    with global_tracking_uri(recorded_server):
        table, found = (
            mlflow.search_traces(locations=[experiment.experiment_id], max_results=5, return_type=kind)
            for kind in ("pandas", "list")
        )
    results = assess(table, scorers=["stage_latency"], settings=made.settings)
    expected = assess(found, scorers=["stage_latency"], settings=made.settings)
    assert len(ids(results)) == 5
    assert_same_results(results, expected)


def test_a_table_without_traces_is_refused(made: MadeProject) -> None:
    with pytest.raises(MonitoringError, match=r"no column 'trace', only id, name$"):
        assess(pd.DataFrame({"id": [], "name": []}), settings=made.settings)


def test_archived_traces_by_id_by_time_and_by_filter(made: MadeProject) -> None:
    def found(**choice: Any) -> set[str]:
        return ids(assess(scorers=["stage_latency"], settings=made.settings, **choice))

    prod = "tags.env = 'prod'"
    assert found(trace_ids=[IDS[3], IDS[17], IDS[3]]) == {IDS[3], IDS[17]}
    assert found(trace_ids=[]) == set()
    assert found(start_time=START + HOUR, end_time=START + 3 * HOUR) == set(IDS[10:30])
    assert found(start_time=START + 1.5 * HOUR, end_time=START + 1.6 * HOUR) == set(IDS[10:20])  # the whole hour
    assert found(**RANGE, filter_string=prod) == set(IDS[::2])
    assert found(trace_ids=IDS[4:6], start_time=START, end_time=START + HOUR) == set(IDS[4:6])
    assert found(end_time=START + 2 * HOUR, filter_string=prod) == set(IDS[:20:2])  # the 24 hours before
    assert found() == set()  # the last 24 hours


def test_a_time_without_a_zone_is_local(made: MadeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # nine hours ahead
    time.tzset()
    try:
        start, end = map(datetime.fromisoformat, ("2026-01-01T14:00", "2026-01-01T15:00"))
        results = assess(start_time=start, end_time=end, scorers=["stage_latency"], settings=made.settings)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ids(results) == set(IDS[:10])


def test_the_archive_does_not_change(made: MadeProject) -> None:
    before = made.versions()
    assert len(assess(**RANGE, settings=made.settings)) == 80
    assess(**RANGE, scorers=[odd_scorers.nothing, odd_scorers.even], settings=made.settings)
    assert made.versions() == before
    assert made.rows() == []


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            {"trace_ids": ["tr-nowhere", IDS[0]]},
            r"^no trace tr-nowhere in the archive; archive its hour first, or pass",
        ),
        (
            {"trace_ids": [IDS[0]], "start_time": START + HOUR, "end_time": START + 2 * HOUR},
            f"^no trace {IDS[0]} in the archive of",
        ),
        ({"trace_ids": [IDS[1]], "filter_string": "tags.env = 'prod'"}, f"^no trace {IDS[1]}"),
        ({**RANGE, "filter_string": "nonsense"}, r"^trace filter 'nonsense': "),
        ({**RANGE, "scorers": ["tool_erors"]}, r"^no scorer 'tool_erors'; configured are response_quality, stage_lat"),
        ({**RANGE, "scorers": ["stage_latency", stage_latency]}, "^more than one scorer is named stage_latency; "),
        (
            {"traces": [], "trace_ids": [IDS[0]]},
            "^give either traces, or trace_ids, start_time, end_time and filter_string",
        ),
        ({"traces": [], "start_time": START}, "^give either traces"),
        ({"traces": [], "filter_string": "tags.env = 'prod'"}, "^give either traces"),
        ({"start_time": START, "end_time": START}, "^start 2026-01-01T05:00Z is not before end 2026-01-01T05:00Z$"),
        (
            {"start_time": datetime(2020, 1, 1, tzinfo=UTC)},
            "^start 2020-01-01T00:00Z is before the archive's start; set",
        ),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(made: MadeProject, choice: dict[str, Any], line: str) -> None:
    with pytest.raises(MonitoringError, match=line) as raised:
        assess(**choice, settings=made.settings)
    assert "\n" not in str(raised.value)


# Scorers and their results


def assert_same_results(one: pd.DataFrame, other: pd.DataFrame) -> None:
    differing = ["assessed_at", "duration_ms"]
    pd.testing.assert_frame_equal(one.drop(columns=differing), other.drop(columns=differing))


def test_results_are_what_the_scorers_return(made: MadeProject) -> None:
    project = made.having(QUALITY, EVEN)
    results = assess(**RANGE, settings=project.settings).set_index(["trace_id", "scorer"])
    assert len(results) == 80
    for trace in traces():
        row = results.loc[(trace.info.trace_id, "response_quality")]
        feedback: Any = response_quality.run(outputs=f"answer {int(trace.info.trace_id[3:], 16)}.", trace=trace)
        assert (json.loads(row["value"]), row["rationale"]) == (feedback.value, feedback.rationale)
        assert row["score"] == as_score(feedback.value)
        row = results.loc[(trace.info.trace_id, "even")]
        try:
            value: Any = odd_scorers.even.run(trace=trace)
        except ValueError:
            assert (row["error_code"], row["error_message"]) == ("SCORER_ERROR", "ValueError: five divides it")
            assert row[["value", "score"]].isna().all()
        else:
            assert (json.loads(row["value"]), row["score"]) == (value, float(value))
    assert results["error_code"].notna().sum() == 8


def test_scorer_objects_are_accepted_instead_of_names(made: MadeProject, model: ModelDouble) -> None:
    @as_scorer
    def shouts(outputs: Any) -> bool:
        return str(outputs).isupper()

    polite = make_judge(name="polite", instructions="Is {{ outputs }} polite?", model="openai:/gpt-4o-mini")
    results = assess(**RANGE, scorers=[shouts, polite, "stage_latency"], settings=made.settings)
    by_scorer = results.groupby("scorer")
    assert by_scorer.size().to_dict() == {"polite": 40, "shouts": 40, "stage_latency": 40}
    assert by_scorer["score"].mean().to_dict() == {"polite": 1, "shouts": 0, "stage_latency": 1}
    assert by_scorer["source_type"].unique().str[0].to_dict() == {
        "polite": "LLM_JUDGE",
        "shouts": "CODE",
        "stage_latency": "CODE",
    }
    judged = results[results["scorer"] == "polite"]
    assert (judged["input_tokens"].sum(), judged["output_tokens"].sum()) == model.tokens
    assert len(model.requests) == 40
    assert judged["cost_usd"].gt(0).all()


def test_a_trace_passed_twice_is_scored_once(made: MadeProject, model: ModelDouble) -> None:
    polite = make_judge(name="polite", instructions="Is {{ outputs }} polite?", model="openai:/gpt-4o-mini")
    results = assess(traces()[:3] * 3, scorers=[polite], settings=made.settings)
    assert list(results["trace_id"]) == IDS[:3]
    assert len(model.requests) == 3


def test_a_scorer_of_sessions_returns_a_row_per_session(made: MadeProject) -> None:
    results = assess(**RANGE, scorers=[odd_scorers.length], settings=made.settings)
    assert results[["trace_id", "session_id", "score"]].values.tolist() == [[IDS[0], "a", 3.0], [IDS[3], "b", 3.0]]


def test_a_scorer_that_does_not_apply_returns_no_row(made: MadeProject) -> None:
    assert assess(**RANGE, scorers=[odd_scorers.nothing], settings=made.settings).empty
    assert list(assess(**RANGE, scorers=[], settings=made.settings).columns) == COLUMNS


def test_budget_sample_rate_and_filter_of_production_do_not_apply(made: MadeProject) -> None:
    narrow = QUALITY.model_copy(update={"sample_rate": 0.1, "max_traces_per_hour": 2, "filter": "tags.env = 'dev'"})
    assert len(assess(**RANGE, settings=made.having(narrow).settings)) == 40


# Figures and results in MLflow


def test_the_run_has_the_figures_of_the_table(
    made: MadeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(made.settings.mlflow.tracking_uri)
    experiment_id = client.create_experiment("gate", artifact_location=(tmp_path / "artifacts").as_uri())
    low = NUMBER.model_copy(update={"name": "low", "pass_if": "< 12"})
    blue, none = scorer("word", f"{ODD}:word"), scorer("nothing", f"{ODD}:nothing")
    project = made.having(QUALITY, NUMBER, low, EVEN, blue, none)
    table = assess(**RANGE, experiment_name="gate", settings=project.settings)

    [run] = client.search_runs([experiment_id])
    assert run.info.status == "FINISHED"
    rates = {"low": lambda scores: scores < 12, "even": lambda scores: scores == 1}
    expected: dict[str, float] = {}
    for entry in project.settings.scorers:
        rows = table[table["scorer"] == entry.name]
        scores = rows["score"].dropna().astype(float)
        expected |= {f"{entry.name}/n": scores.count(), f"{entry.name}/errors": rows["error_code"].count()}
        if len(scores):
            expected[f"{entry.name}/mean"] = scores.mean()
        if entry.name in rates:
            expected[f"{entry.name}/pass_rate"] = rates[entry.name](scores).mean()
    assert run.data.metrics == pytest.approx(expected)
    assert expected["low/pass_rate"] == 12 / 40
    assert expected["even/pass_rate"] == 16 / 32
    assert expected["even/errors"] == 8
    assert (expected["nothing/n"], expected["word/n"]) == (0, 0)
    digests = {f"{name}/digest": digest for name, digest in zip(table["scorer"], table["scorer_digest"], strict=True)}
    assert {name: value for name, value in run.data.params.items() if name != "nothing/digest"} == digests

    with global_tracking_uri(made.settings.mlflow.tracking_uri):
        logged = client.load_table(experiment_id, on_demand.RESULTS_FILE, [run.info.run_id])
    assert list(logged.columns) == COLUMNS
    assert cells(logged) == cells(table)
    assert list(logged["duration_ms"]) == pytest.approx(list(table["duration_ms"]), abs=1e-6)


def cells(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The cells of a table as text, whatever the types of its columns, without durations."""
    timed = table.assign(assessed_at=pd.to_datetime(table["assessed_at"], utc=True)).drop(columns="duration_ms")
    return [
        {name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in timed.to_dict(orient="records")
    ]


def test_a_missing_experiment_is_created(made: MadeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluated = evaluate_production_traces(
        WINDOW.start, WINDOW.end, ["stage_latency"], experiment_name="new", settings=made.settings
    )
    assert_same_results(evaluated, assess(**RANGE, scorers=["stage_latency"], settings=made.settings))
    client = MlflowClient(made.settings.mlflow.tracking_uri)
    experiment = client.get_experiment_by_name("new")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["stage_latency/n"] == 40


def test_an_unusable_experiment_is_reported_before_a_scorer_runs(made: MadeProject, model: ModelDouble) -> None:
    client = MlflowClient(made.settings.mlflow.tracking_uri)
    client.delete_experiment(client.create_experiment("gone"))
    polite = make_judge(name="polite", instructions="Is {{ outputs }} polite?", model="openai:/gpt-4o-mini")
    with pytest.raises(TrackingError, match=r"^experiment 'gone' is deleted; restore it \(mlflow experiments restore"):
        assess(**RANGE, scorers=[polite], experiment_name="gone", settings=made.settings)
    assert model.requests == []
