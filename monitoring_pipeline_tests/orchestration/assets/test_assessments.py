"""The asset of a scorer: automatic and manual runs, sample rates, and budgets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from mlflow.entities import TraceState

from monitoring_pipeline import lifecycle
from monitoring_pipeline.keys import ASSETS, MONITORING, RANGE_END, RANGE_START, partition_key, scorer_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.tables import AGENT_TRACES, SCORER_COVERAGE
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.made_project import FIRST, IDS, LAST, LATENCY, MadeProject, config_fields
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.sources.stores import START

KEY = scorer_key(LATENCY.name)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def latency(made: MadeProject) -> MadeProject:
    """A project whose only scorer is registered and active."""
    project = made.having(LATENCY)
    lifecycle.handle(LATENCY.name, project.settings).register().start()
    return project


def run(
    project: MadeProject,
    instance: dg.DagsterInstance,
    job: str = ASSETS,
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    ops = {"assessments__stage_latency": {"config": config}} if config else {}
    return (
        build_definitions(project.settings)
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            asset_selection=[KEY],
            tags={RANGE_START: FIRST, RANGE_END: LAST, **(tags or {})},
            run_config={**QUIET, "ops": ops},
        )
    )


@pytest.mark.parametrize(
    ("job", "tags"),
    [
        (MONITORING, {}),
        (ASSETS, {"dagster/sensor_name": "a_sensor"}),
        (ASSETS, {"dagster/schedule_name": "a_schedule"}),
        (ASSETS, {"dagster/auto_materialize": "true"}),
        (ASSETS, {"dagster/from_automation_condition": "true"}),
    ],
)
def test_a_stopped_scorer_does_not_run_automatically(
    latency: MadeProject, instance: dg.DagsterInstance, job: str, tags: dict[str, str]
) -> None:
    handle = lifecycle.handle(LATENCY.name, latency.settings).stop()
    assert run(latency, instance, job, tags).success
    assert latency.scored(LATENCY.name) == []
    handle.start()
    assert run(latency, instance, job, tags).success
    assert latency.scored(LATENCY.name) == IDS


@pytest.mark.parametrize("tags", [{}, {"dagster/backfill": "abc"}])
def test_a_stopped_scorer_runs_on_request(
    latency: MadeProject, instance: dg.DagsterInstance, tags: dict[str, str]
) -> None:
    lifecycle.handle(LATENCY.name, latency.settings).stop()
    assert run(latency, instance, tags=tags).success
    assert latency.scored(LATENCY.name) == IDS


@pytest.mark.parametrize("state", ["stopped", "registered"])
def test_a_scorer_configured_as_stopped_does_not_run_automatically(
    made: MadeProject, instance: dg.DagsterInstance, state: str
) -> None:
    project = made.having(LATENCY.model_copy(update={"state": state}))
    assert run(project, instance, MONITORING).success
    assert project.scored(LATENCY.name) == []
    assert run(project, instance).success
    assert project.scored(LATENCY.name) == IDS


def test_rate_and_filter_come_from_the_scorers_state(latency: MadeProject, instance: dg.DagsterInstance) -> None:
    handle = lifecycle.handle(LATENCY.name, latency.settings).update(sample_rate=0.3, filter="tags.env = 'prod'")
    assert run(latency, instance, MONITORING).success
    few = latency.scored(LATENCY.name)
    assert 0 < len(few) < 20
    assert set(few) < set(IDS[::2])
    assert {row["sample_rate"] for row in latency.rows()} == {0.3}
    ledger = latency.rows(SCORER_COVERAGE)
    assert {row["filtered_out"] for row in ledger} == {5}
    assert sum(row["scored"] for row in ledger) == len(few)
    assert {row["pending"] for row in ledger} == {0}

    handle.update(sample_rate=1.0, filter="")
    assert run(latency, instance, MONITORING).success
    assert latency.scored(LATENCY.name) == IDS
    assert {row["sample_rate"] for row in latency.rows() if row["trace_id"] in few} == {0.3}


def test_a_run_may_have_its_own_rate(latency: MadeProject, instance: dg.DagsterInstance) -> None:
    lifecycle.handle(LATENCY.name, latency.settings).update(sample_rate=0.0)
    assert run(latency, instance, config={"sample_rate": 1.0}).success
    assert latency.scored(LATENCY.name) == IDS


def test_an_earlier_hour_is_materialized_when_its_silent_trace_is_scored(
    made: MadeProject, instance: dg.DagsterInstance
) -> None:
    project, hour = made.having(LATENCY), Window(START, START + HOUR)
    archive_traces(project.lake, hour, [made_trace(0, START, state=TraceState.IN_PROGRESS)])
    assert run(project, instance, tags={RANGE_START: FIRST, RANGE_END: FIRST}).success
    assert IDS[0] not in project.scored(LATENCY.name)
    _make_older(project, hour)
    second = partition_key(START + HOUR)
    assert run(project, instance, tags={RANGE_START: second, RANGE_END: second}).success
    assert IDS[0] in project.scored(LATENCY.name)
    events = instance.fetch_materializations(KEY, limit=10).records
    assert [event.partition_key for event in events] == [second, FIRST, FIRST]


def _make_older(project: MadeProject, hour: Window) -> None:
    """Make the archive of the hour as old as its traces."""
    names = AGENT_TRACES.columns.names
    rows = project.lake.read_columns(AGENT_TRACES, hour, *names)
    index = rows.column_names.index("created_at")
    times = pa.array([hour.start] * len(rows), rows.schema.field("created_at").type)
    project.lake.replace(AGENT_TRACES, hour, rows.set_column(index, rows.schema.field("created_at"), times))


@pytest.mark.parametrize("rate", [-0.5, 1.5])
def test_an_invalid_rate_fails_the_run(latency: MadeProject, instance: dg.DagsterInstance, rate: float) -> None:
    with pytest.raises(Exception, match=r"sample_rate\n +Input should be (greater|less) than or equal to"):
        run(latency, instance, config={"sample_rate": rate})
    assert latency.rows() == []


def test_options_of_a_run_are_described(latency: MadeProject) -> None:
    job = build_definitions(latency.settings).resolve_job_def(ASSETS)
    fields = config_fields(job, "assessments__stage_latency")
    assert set(fields) == {"retry_failed", "newest_first", "sample_rate"}
    assert all(field.description for field in fields.values())
    assert not any(field.is_required for field in fields.values())


def test_an_exhausted_budget_ends_the_run_successfully_with_a_warning(
    made: MadeProject, instance: dg.DagsterInstance
) -> None:
    project = made.having(LATENCY.model_copy(update={"max_traces_per_hour": 15}))
    result = run(project, instance)
    assert result.success
    assert len(project.scored(LATENCY.name)) == 15
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert checks["scorer_works"].passed
    assert not checks["within_budget"].passed
    assert checks["within_budget"].severity == dg.AssetCheckSeverity.WARN
    assert checks["within_budget"].metadata["used"].value == "15 traces of max_traces_per_hour = 15"
    ledger = project.rows(SCORER_COVERAGE)
    assert sum(row["over_budget"] for row in ledger) == 25
    assert sum(row["pending"] for row in ledger) == 0


def test_a_sufficient_budget_passes(made: MadeProject, instance: dg.DagsterInstance) -> None:
    project = made.having(LATENCY.model_copy(update={"max_traces_per_hour": 40}))
    checks = {check.check_name: check for check in run(project, instance).get_asset_check_evaluations()}
    assert checks["within_budget"].passed
    assert len(project.scored(LATENCY.name)) == 40


def test_without_a_budget_there_is_no_budget_check(latency: MadeProject, instance: dg.DagsterInstance) -> None:
    checks = {check.check_name for check in run(latency, instance).get_asset_check_evaluations()}
    assert checks == {"scorer_works", "schema_as_declared", "values_in_range"}
