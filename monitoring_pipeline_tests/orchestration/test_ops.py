"""The job that assesses on demand, as the Launchpad shows and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient

from monitoring_pipeline.api import assess
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline_tests.made_project import (
    FROM,
    IDS,
    LATENCY,
    QUALITY,
    TO,
    WINDOW,
    MadeProject,
    config_fields,
    scorer,
)

EVEN = scorer("even", "monitoring_pipeline_tests.odd_scorers:even")


def run(project: MadeProject, **config: Any) -> tuple[dg.ExecuteInProcessResult, dict[str, Any]]:
    """The run, and the metadata of its output."""
    job = build_definitions(project.settings).resolve_job_def("assess_job")
    result = job.execute_in_process(
        run_config={
            "ops": {"assess": {"config": config}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        raise_on_error=False,
    )
    outputs = [event.step_output_data for event in result.all_events if event.is_successful_output]
    return result, {name: value.value for output in outputs for name, value in output.metadata.items()}


def reason(result: dg.ExecuteInProcessResult) -> str:
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if failure.user_failure_data is not None and failure.user_failure_data.description:
        return failure.user_failure_data.description
    assert failure.error is not None
    return (failure.error.cause or failure.error).message.strip()


def test_the_launchpad_describes_the_options(made: MadeProject) -> None:
    job = build_definitions(made.settings).resolve_job_def("assess_job")
    fields = config_fields(job, "assess")
    assert set(fields) == {
        "start",
        "end",
        "filter",
        "trace_ids",
        "scorers",
        "experiment_name",
        "fail_under",
    }
    assert all(field.description for field in fields.values())
    assert not any(field.is_required for field in fields.values())
    assert job.description


def test_figures_equal_those_of_assess_and_the_archive_does_not_change(made: MadeProject) -> None:
    project = made.having(QUALITY, EVEN)
    before = project.versions()
    result, figures = run(project, start=FROM, end=TO)
    assert result.success
    table = assess(start_time=WINDOW.start, end_time=WINDOW.end, settings=project.settings)
    scores = table.groupby("scorer")["score"]
    assert figures == {
        "response_quality/n": 40,
        "response_quality/mean": pytest.approx(scores.mean()["response_quality"]),
        "response_quality/errors": 0,
        "even/n": 32,
        "even/mean": 0.5,
        "even/pass_rate": 0.5,
        "even/errors": 8,
    }
    assert project.versions() == before


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({"start": FROM, "end": TO, "filter": "tags.env = 'prod'"}, 20),
        ({"start": "2026-01-01T06:30Z", "end": "2026-01-01T07:30+00:00"}, 20),  # the whole hours
        ({"end": "2026-01-01T07:00Z"}, 20),
        ({"trace_ids": IDS[3:6]}, 3),
        ({"start": FROM, "end": TO, "trace_ids": IDS[:1]}, 1),
        ({}, 0),
    ],
)
def test_traces_are_chosen_as_by_assess(made: MadeProject, choice: dict[str, Any], count: int) -> None:
    result, figures = run(made, scorers=["stage_latency"], **choice)
    assert result.success
    assert figures["stage_latency/n"] == count


def test_the_run_in_mlflow_is_named(made: MadeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, figures = run(made, start=FROM, end=TO, experiment_name="gate")
    logged = MlflowClient(made.settings.mlflow.tracking_uri).get_run(figures["mlflow_run_id"])
    assert logged.data.metrics["stage_latency/n"] == 40


def test_a_score_below_its_threshold_fails_the_run_with_the_line(made: MadeProject) -> None:
    project = made.having(LATENCY, EVEN)
    under = {"stage_latency": 1.0, "even": 0.75}
    result, _ = run(project, start=FROM, end=TO, fail_under=under)
    assert not result.success
    assert reason(result) == "even: mean score 0.5000 is under 0.75"
    result, figures = run(project, start=FROM, end=TO, fail_under={"stage_latency": 1.0, "even": 0.5})
    assert result.success
    assert figures["even/mean"] == 0.5


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"start": "yesterday"}, "'yesterday' is not a time"),
        ({"start": "2020-01-01T00:00Z", "end": TO}, "is before the archive's start"),
        ({"scorers": ["evn"]}, "no scorer 'evn'; configured are response_quality, stage_latency"),
        ({"filter": "nonsense"}, "trace filter 'nonsense': "),
        ({"fail_under": {"evn": 1.0}}, "fail-under names evn, but only response_quality, stage_latency runs"),
    ],
)
def test_invalid_options_fail_the_run_with_one_line(made: MadeProject, config: dict[str, Any], line: str) -> None:
    result, _ = run(made, **config)
    assert not result.success
    assert line in reason(result)
    assert "\n" not in reason(result)
