"""Assets as Databricks jobs, against a double of the workspace that runs each task as a process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.keys import RANGE_END, RANGE_START, scorer_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.databricks_jobs import handed_over
from monitoring_pipeline.orchestration.runs import QUIET, failures
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.scoring import registry
from monitoring_pipeline.settings import (
    ArchiveSettings,
    DagsterSettings,
    DatabricksSettings,
    LakeSettings,
    MlflowSettings,
    Settings,
    SparkSettings,
)
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, HOURLY_PERFORMANCE, TRACE_ERRORS, TRACE_PERFORMANCE
from monitoring_pipeline_tests.databricks.conftest import (
    FIRST,
    FOLDER,
    HOURS,
    LAST,
    ODD,
    SERVERLESS,
    VOLUME,
    Project,
    settings_of,
)
from monitoring_pipeline_tests.databricks.workspace_double import TOKEN, Answer, WorkspaceDouble, error, until
from monitoring_pipeline_tests.made_project import scorer

SUBMIT, GET = "/api/2.2/jobs/runs/submit", "/api/2.2/jobs/runs/get"
CANCEL, FILES = "/api/2.2/jobs/runs/cancel", "/api/2.0/fs/"
WHEEL = f"{VOLUME}/monitoring_pipeline.whl"
CLUSTER = DatabricksSettings(jobs="cluster", cluster_id="0101-1", volume=VOLUME, packages=[WHEEL, "my-scorers==1.0"])
NEW_CLUSTER = DatabricksSettings(
    jobs="cluster", new_cluster={"spark_version": "17.3.x", "num_workers": 2}, volume=VOLUME, packages=[WHEEL]
)
TRACES, ERRORS = dg.AssetKey("archived_traces"), dg.AssetKey(TRACE_ERRORS.name)
EVEN = scorer_key("even")
REPORTS = {dg.AssetKey("daily_report"), dg.AssetKey("weekly_report")}
WITHOUT_REPORT = "raise SystemExit(0)"
BAD_START = "raise SystemExit('ModuleNotFoundError: no module <b>mine</b>')"
SLEEPING = "import time; time.sleep(600)"
OPENED_AND_CLOSED = """
from dagster_pipes import *
with open_dagster_pipes(
    params_loader=PipesCliArgsParamsLoader(),
    context_loader=PipesUnityCatalogVolumesContextLoader(),
    message_writer=PipesUnityCatalogVolumesMessageWriter(),
):
    pass
"""
NoToken = Callable[[Project, WorkspaceDouble], None]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait ten seconds for the last messages of a dead process."""
    monkeypatch.setattr("dagster._core.pipes.utils.WAIT_FOR_LOGS_AFTER_EXECUTION_INTERVAL", 0)


def on(project: Project, databricks: DatabricksSettings) -> Project:
    return replace(project, settings=project.settings.model_copy(update={"databricks": databricks}))


def failure(result: dg.ExecuteInProcessResult) -> str:
    """The reason why the only step failed, on one line."""
    assert not result.success
    (reason,) = failures(result).values()
    assert "\n" not in reason
    return reason.removeprefix("monitoring_pipeline.errors.MonitoringError: ")


def nothing_recorded(project: Project, key: dg.AssetKey) -> bool:
    return not project.instance.fetch_materializations(key, limit=1).records


@pytest.mark.parametrize(
    ("key", "table", "databricks"),
    [
        (TRACES, AGENT_TRACES, SERVERLESS),
        (dg.AssetKey(TRACE_PERFORMANCE.name), TRACE_PERFORMANCE, CLUSTER),
        (dg.AssetKey(HOURLY_PERFORMANCE.name), HOURLY_PERFORMANCE, NEW_CLUSTER),
    ],
)
def test_a_job_writes_the_same_as_a_run_in_process(
    key: dg.AssetKey,
    table: Any,
    databricks: DatabricksSettings,
    finished: Project,
    remote: Project,
    workspace: WorkspaceDouble,
    no_token: NoToken,
) -> None:
    shutil.rmtree(remote.folder / "lake" / table.name)
    project = on(remote, databricks)

    result = project.run(key)

    assert failures(result) == {}
    assert len(project.metadata(key)) == HOURS
    assert project.metadata(key) == finished.metadata(key)
    assert project.rows(table) == finished.rows(table)
    assert len(workspace.runs) == 1
    assert workspace.folder_of(f"{VOLUME}/tmp").is_dir()
    assert not any(workspace.folder_of(f"{VOLUME}/tmp").iterdir())
    assert "/?o=1#job/1/run/100" in project.log()
    no_token(project, workspace)


def test_a_job_of_another_code_location_materializes_our_asset_under_its_prefix(
    finished: Project, remote: Project, workspace: WorkspaceDouble
) -> None:
    shutil.rmtree(remote.folder / "lake" / TRACE_ERRORS.name)
    dagster = DagsterSettings(key_prefix=["team", "agents"], resource_prefix="agents")
    key = dagster.names.key(TRACE_ERRORS.name)
    job = dg.define_asset_job("theirs", selection=dg.AssetSelection.assets(key))
    ours = build_definitions(remote.settings.model_copy(update={"dagster": dagster}))

    result = (
        dg.Definitions.merge(dg.Definitions(jobs=[job]), ours)
        .resolve_job_def("theirs")
        .execute_in_process(
            instance=remote.instance, tags={RANGE_START: FIRST, RANGE_END: LAST}, run_config=QUIET, raise_on_error=False
        )
    )

    assert failures(result) == {}
    assert len(workspace.runs) == 1
    assert remote.metadata(key) == finished.metadata(ERRORS)
    assert remote.rows(TRACE_ERRORS) == finished.rows(TRACE_ERRORS)
    assert {check.asset_key for check in result.get_asset_check_evaluations()} == {key}


def test_a_scorer_has_its_checks_configuration_and_progress(
    finished: Project, remote: Project, workspace: WorkspaceDouble, no_token: NoToken
) -> None:
    shutil.rmtree(remote.folder / "lake" / ASSESSMENTS.name)

    result = remote.run(EVEN, ops={"assessments__even": {"config": {"sample_rate": 0.5, "newest_first": True}}})

    assert result.success
    (check,) = (check for check in result.get_asset_check_evaluations() if check.check_name == "scorer_works")
    rows = remote.rows(ASSESSMENTS, "even")
    of_all = finished.rows(ASSESSMENTS, "even")
    assert 0 < len(rows) < len(of_all) == 2 * HOURS
    assert [{**row, "sample_rate": "1.0"} for row in rows] == [
        row for row in of_all if row["trace_id"] in {r["trace_id"] for r in rows}
    ]
    failed = sum(row["error_code"] == "SCORER_ERROR" for row in rows)
    assert failed
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert {name: value.value for name, value in check.metadata.items()} == {
        "scored": len(rows) - failed,
        "failed": failed,
        "most_frequent_error": "SCORER_ERROR: ValueError: five divides it",
    }
    assert len(remote.metadata(EVEN)) == HOURS
    assert sum(metadata["dagster/row_count"].value for metadata in remote.metadata(EVEN).values()) == len(rows)
    assert re.search(r"\d+ scored, \d+ failed, 0 not applicable", remote.log())
    no_token(remote, workspace)


def test_results_have_the_id_of_the_calling_run(remote: Project, workspace: WorkspaceDouble) -> None:
    shutil.rmtree(remote.folder / "lake" / ASSESSMENTS.name)

    result = remote.run(EVEN, FIRST, FIRST)

    assert result.success
    lake = build_resources(settings_of(str(remote.folder)))["lake"]
    ids = lake.read(ASSESSMENTS).select("dagster_run_id").distinct().toPandas()
    assert ids["dagster_run_id"].tolist() == [result.run_id]
    assert list(remote.metadata(EVEN)) == [FIRST]


@pytest.mark.parametrize(
    ("databricks", "expected"),
    [
        (
            SERVERLESS,
            {
                "environment_key": "asset",
                "environments": [
                    {"environment_key": "asset", "spec": {"dependencies": [WHEEL], "environment_version": "4"}}
                ],
            },
        ),
        (
            CLUSTER,
            {
                "existing_cluster_id": "0101-1",
                "libraries": [{"whl": WHEEL}, {"pypi": {"package": "my-scorers==1.0"}}],
            },
        ),
        (
            NEW_CLUSTER,
            {"new_cluster": {"spark_version": "17.3.x", "num_workers": 2}, "libraries": [{"whl": WHEEL}]},
        ),
    ],
)
def test_the_submitted_job(
    databricks: DatabricksSettings,
    expected: dict[str, Any],
    remote: Project,
    workspace: WorkspaceDouble,
    impatient: None,
) -> None:
    workspace.program = WITHOUT_REPORT
    on(remote, databricks).run(ERRORS)

    (run,) = workspace.runs.values()
    given = {**run.task, **({"environments": run.submitted["environments"]} if "environments" in run.submitted else {})}
    wheel = given.pop("python_wheel_task")
    assert (wheel["package_name"], wheel["entry_point"]) == ("monitoring_pipeline", "databricks-task")
    assert given == {"task_key": "asset", **expected}


def test_unknown_fields_of_the_jobs_api_are_refused(
    remote: Project, workspace: WorkspaceDouble, impatient: None
) -> None:
    databricks = NEW_CLUSTER.model_copy(update={"new_cluster": {"spark_version": "17.3.x", "num_worker": 2}})

    reason = failure(on(remote, databricks).run(ERRORS))

    assert reason == "databricks.new_cluster: the Jobs API has no num_worker; check the spelling"
    assert not workspace.runs


def test_an_interrupted_step_ends_the_job(
    remote: Project, workspace: WorkspaceDouble, impatient: None, no_token: NoToken
) -> None:
    def interrupt_once_it_runs() -> None:
        until(lambda: len(workspace.requests_to(GET)) > 2)
        os.kill(os.getpid(), signal.SIGINT)  # Dagster raises this in the step of a terminated run

    interrupter = threading.Thread(target=interrupt_once_it_runs)
    interrupter.start()
    result = remote.run(TRACES)
    interrupter.join()

    (run,) = workspace.runs.values()
    assert run.cancelled
    with pytest.raises(ProcessLookupError):
        os.kill(run.process.pid, 0)
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_failure_data.error is not None
    assert event.step_failure_data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__
    assert nothing_recorded(remote, TRACES)
    assert len(workspace.requests_to(CANCEL)) == 1
    no_token(remote, workspace)


def test_an_interruption_during_submission_ends_the_job(
    remote: Project, workspace: WorkspaceDouble, impatient: None
) -> None:
    workspace.program = SLEEPING
    submit = workspace._submit

    def interrupted(request: Any) -> Answer:
        answer = submit(request)
        os.kill(os.getpid(), signal.SIGINT)
        return answer

    workspace.route("POST", SUBMIT, interrupted)

    result = remote.run(TRACES)

    (run,) = workspace.runs.values()
    assert run.cancelled
    assert run.process.returncode == -signal.SIGKILL
    assert not result.success
    assert nothing_recorded(remote, TRACES)


def test_a_killed_task_fails_the_step(remote: Project, workspace: WorkspaceDouble, impatient: None) -> None:
    project = replace(remote, settings=settings_of(FOLDER, scorer("deadly", f"{ODD}:deadly"), databricks=SERVERLESS))

    reason = failure(project.run(scorer_key("deadly")))

    assert reason.startswith(
        "Databricks run 100 failed: Workload failed, see run output for details (exit code -9); see "
    )
    assert reason.endswith("/?o=1#job/1/run/100")
    assert nothing_recorded(project, scorer_key("deadly"))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (WITHOUT_REPORT, f"ended without reporting {HOURS} partitions, 2026-01-01-05:00 first; see "),
        (OPENED_AND_CLOSED, f"ended without reporting {HOURS} partitions, 2026-01-01-05:00 first; see "),
        (BAD_START, "failed: ModuleNotFoundError: no module <b>mine</b>; see "),
    ],
)
def test_a_task_that_does_not_report_fails_the_step(
    program: str, message: str, remote: Project, workspace: WorkspaceDouble, impatient: None
) -> None:
    workspace.program = program

    reason = failure(remote.run(ERRORS))

    assert reason.startswith(f"Databricks run 100 {message}")
    assert nothing_recorded(remote, ERRORS)


def test_a_run_cancelled_on_databricks_fails_the_step(
    remote: Project, workspace: WorkspaceDouble, impatient: None
) -> None:
    workspace.program = SLEEPING

    def cancel() -> None:
        until(lambda: workspace.requests_to(GET))
        workspace.runs[100].cancelled = True
        workspace.runs[100].kill()

    threading.Thread(target=cancel).start()
    reason = failure(remote.run(ERRORS))

    assert reason.startswith("Databricks run 100 was cancelled: Run cancelled; see http")
    assert nothing_recorded(remote, ERRORS)


def test_requests_that_fail_temporarily_are_repeated_and_the_job_starts_once(
    finished: Project, remote: Project, workspace: WorkspaceDouble
) -> None:
    busy = Answer(429, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}, {"Retry-After": "0"})
    broken = error(500, "INTERNAL_ERROR", "broken")
    for path in (FILES, SUBMIT, GET):
        workspace.answer_next(1, busy, path)
        workspace.answer_next(2, broken, path)
    workspace.answer_next(1, broken, SUBMIT, carried_out=True)  # the job starts, but the response is lost
    workspace.answer_next(1, Answer(502, b"<html>bad gateway</html>"), GET)

    result = remote.run(ERRORS)

    assert failures(result) == {}
    assert len(workspace.requests_to(SUBMIT)) == 5
    assert len(workspace.runs) == 1
    assert len({request.json["idempotency_token"] for request in workspace.requests_to(SUBMIT)}) == 1
    assert remote.metadata(ERRORS) == finished.metadata(ERRORS)


def test_messages_that_cannot_be_removed_do_not_fail_a_successful_job(
    finished: Project, remote: Project, workspace: WorkspaceDouble
) -> None:
    workspace.route("DELETE", f"{FILES}.+", lambda request: error(403, "PERMISSION_DENIED", "not yours"))

    result = remote.run(ERRORS)

    assert failures(result) == {}
    assert (
        f"the job's messages stay in {VOLUME}: Databricks at {workspace.host} denies access: not yours" in remote.log()
    )
    assert remote.metadata(ERRORS) == finished.metadata(ERRORS)


def test_a_run_continues_if_its_state_cannot_be_read(
    remote: Project, workspace: WorkspaceDouble, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring_pipeline.databricks.workspace.RETRY_SECONDS", 0)
    workspace.program = OPENED_AND_CLOSED
    workspace.answer_next(3, error(500, "INTERNAL_ERROR", "broken"), GET)

    reason = failure(remote.run(ERRORS))

    assert "ended without reporting" in reason
    assert remote.log().count("did not return its state; retrying") == 3
    assert not workspace.requests_to(CANCEL)


def test_refused_credentials_are_reported(
    remote: Project, workspace: WorkspaceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-another")

    reason = failure(remote.run(ERRORS))

    assert reason.startswith(f"Databricks at {workspace.host} denies access: Invalid access token")
    assert "check DATABRICKS_HOST and DATABRICKS_TOKEN, or DATABRICKS_CLIENT_ID and" in reason
    assert "dapi-another" not in remote.log()
    assert not workspace.runs


def test_missing_credentials_are_reported(
    remote: Project, workspace: WorkspaceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABRICKS_TOKEN")
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/nowhere")

    reason = failure(remote.run(ERRORS))

    assert reason.startswith("no credentials for Databricks; set DATABRICKS_HOST and DATABRICKS_TOKEN, or ")


@pytest.mark.parametrize("path", [FILES, SUBMIT, GET])
def test_an_unparsable_response_does_not_reveal_the_token(
    path: str, remote: Project, workspace: WorkspaceDouble, impatient: None, no_token: NoToken
) -> None:
    workspace.program = SLEEPING
    workspace.answer_next(1, Answer(400, b"no upstream"), path)  # the SDK's error quotes the request and its headers

    reason = failure(remote.run(ERRORS))

    assert reason.startswith(f"Databricks request to {workspace.host} failed: BadRequest: unable to parse response")
    assert all(run.cancelled for run in workspace.runs.values())
    no_token(remote, workspace)


def test_a_job_with_different_code_is_refused(
    remote: Project, workspace: WorkspaceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_digest", lambda *_: "0123456789abcdef")

    reason = failure(remote.run(EVEN))

    assert "assessments/even is 0123456789abcdef where Dagster runs and " in reason
    assert "install the same packages in both ([databricks] packages)" in reason
    assert nothing_recorded(remote, EVEN)


def test_only_the_body_of_an_asset_differs() -> None:
    here, there = (build_definitions(settings_of(FOLDER, **more)) for more in ({}, {"databricks": SERVERLESS}))
    graph, other = here.resolve_asset_graph(), there.resolve_asset_graph()
    assert graph.get_all_asset_keys() == other.get_all_asset_keys()
    assert graph.asset_check_keys == other.asset_check_keys
    for key in graph.get_all_asset_keys():
        one, two = graph.get(key), other.get(key)
        for name in (
            *("parent_keys", "child_keys", "partitions_def", "backfill_policy", "code_version", "tags", "kinds"),
            *("group_name", "metadata", "description", "is_executable", "check_keys"),
        ):
            assert getattr(one, name) == getattr(two, name), (key, name)
        step, twin = (graph.assets_def_for_key(key).op for graph in (graph, other))
        assert step.name == twin.name
        assert _configuration(step) == _configuration(twin)
        assert bool(twin.required_resource_keys - {"io_manager"}) == (key in REPORTS)


def _configuration(step: Any) -> list[tuple[str, Any, bool, str | None]]:
    fields = getattr(step.config_schema.as_field().config_type, "fields", {}) if step.config_schema else {}
    return [(name, field.config_type.key, field.is_required, field.description) for name, field in fields.items()]


def test_no_secret_is_passed_to_a_job() -> None:
    settings = Settings(
        mlflow=MlflowSettings(tracking_uri="postgresql://ada:hunter2@db/mlflow"),
        archive=ArchiveSettings(source="mlflow-sql", location="postgresql://ada:hunter2@replica/mlflow"),
        lake=LakeSettings(location="main.monitoring"),
        spark=SparkSettings(remote=f"sc://host:443/;token={TOKEN}"),
        databricks=NEW_CLUSTER.model_copy(update={"new_cluster": {"spark_env_vars": {"KEY": "hunter2"}}}),
    )

    handed = str(handed_over(settings))

    assert "hunter2" not in handed
    assert TOKEN not in handed


def test_a_job_without_an_address_that_was_not_passed_names_the_variable_to_set(
    remote: Project, workspace: WorkspaceDouble
) -> None:
    changes = {"mlflow": MlflowSettings(tracking_uri="postgresql://ada:hunter2@db/mlflow")}

    reason = failure(replace(remote, settings=remote.settings.model_copy(update=changes)).run(TRACES))

    assert (
        "[mlflow] tracking_uri holds a password, which is not passed to a job; set MONITORING_MLFLOW__TRACKING_URI"
        in reason
    )
    assert "hunter2" not in remote.log()


def test_a_profile_of_this_machine_is_not_passed_to_a_job() -> None:
    settings = settings_of(FOLDER).model_copy(update={"mlflow": MlflowSettings(tracking_uri="databricks://mine")})

    assert handed_over(settings)["mlflow"]["tracking_uri"] == "databricks"


def test_a_lake_that_jobs_cannot_read_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^lake\.location = 'data/lake': Databricks jobs cannot read a folder of"):
        build_definitions(Settings(databricks=SERVERLESS))
