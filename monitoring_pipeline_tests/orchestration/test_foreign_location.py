"""Our definitions merged into another code location: both theirs and ours work."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.core.package_entry import DG_PLUGIN_ENTRY_POINT_GROUP, discover_package_objects
from dagster.components.testing.utils import create_defs_folder_sandbox

from monitoring_pipeline.component import CONFIG, MonitoringComponent
from monitoring_pipeline.keys import NO_PREFIX, RANGE_END, RANGE_START, scorer_key
from monitoring_pipeline.orchestration.backfills import ScorerOptions, launch_backfills, run_backfills
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.requested_runs import hours_in_progress
from monitoring_pipeline.orchestration.runs import QUIET, run_chain
from monitoring_pipeline.orchestration.unchanged import Work
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.settings import (
    AlertSettings,
    AutomationSettings,
    DagsterSettings,
    DatasetSettings,
    ScoringSettings,
    Settings,
    load_settings,
)
from monitoring_pipeline.tables import HOURLY_QUALITY, SCORER_COVERAGE
from monitoring_pipeline_tests.made_project import FIRST, LAST, WINDOW, MadeProject

THEIR_HOURS = dg.HourlyPartitionsDefinition("2026-01-01-00:00")
THEIR_DAYS = dg.DailyPartitionsDefinition("2026-01-01")
THEIR_REGIONS = dg.StaticPartitionsDefinition(["eu", "us"])
THEIR_KEYS = {dg.AssetKey(name) for name in ("orders", "sales", "prices", "datasets_of_theirs")}
PREFIXED = DagsterSettings(
    key_prefix="team/agents",  # pyright: ignore[reportArgumentType]
    group_prefix="agents",
    resource_prefix="agents",
    owners=["team:agents"],
    tags={"domain": "support"},
)
OURS = PREFIXED.names


class TheirLake(dg.ConfigurableResource):
    """A resource with the same name as ours."""

    water: str = "fresh"


@dg.asset(partitions_def=THEIR_HOURS, group_name="reports")
def orders(lake: TheirLake) -> str:
    return lake.water


@dg.asset(partitions_def=THEIR_DAYS, automation_condition=dg.AutomationCondition.eager())
def sales() -> None: ...


@dg.asset(partitions_def=THEIR_REGIONS)
def prices() -> None: ...


@dg.asset(group_name="datasets")
def datasets_of_theirs() -> None: ...


@dg.op
def upkeep(lake: TheirLake) -> str:
    return lake.water


@dg.job
def monitoring() -> None:
    upkeep()


@dg.schedule(job_name="monitoring", cron_schedule="0 3 * * 0")
def daily_report() -> None: ...


def theirs() -> dg.Definitions:
    return dg.Definitions(
        assets=[orders, sales, prices, datasets_of_theirs],
        jobs=[monitoring, dg.define_asset_job("hourly", selection=["orders"])],
        schedules=[daily_report],
        resources={"lake": TheirLake()},
        executor=dg.multiprocess_executor.configured({"max_concurrent": 2}),
    )


def everything_of(settings: Settings, dagster: DagsterSettings) -> Settings:
    """`settings` with everything that adds definitions, named by `dagster`."""
    return settings.model_copy(
        update={
            "dagster": dagster,
            "scoring": ScoringSettings(write_back=True),
            "datasets": [
                DatasetSettings(name="finished", kind="traces", location=f"{settings.lake.location}-datasets")
            ],
            "alerts": [AlertSettings(name="errors", metric="error_rate", threshold=0.5)],
            "automation": AutomationSettings(enabled=True),
        }
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def settings(made: MadeProject) -> Settings:
    return everything_of(made.settings, PREFIXED)


@pytest.fixture
def merged(settings: Settings) -> dg.Definitions:
    return dg.Definitions.merge(theirs(), build_definitions(settings))


def test_their_and_our_definitions_load_without_a_warning(settings: Settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        merged = dg.Definitions.merge(theirs(), build_definitions(settings))
        repository = merged.get_repository_def()
        repository.load_all_definitions()
        dg.Definitions.validate_loadable(merged)
    names = [definition.name for definition in (*repository.get_all_jobs(), *repository.sensor_defs)]
    names += [schedule.name for schedule in repository.schedule_defs]
    assert all(
        name.startswith("team_agents_")
        for name in {*names}
        - {"monitoring", "hourly", "daily_report", "__ASSET_JOB", "default_automation_condition_sensor"}
    )
    assert set(repository.get_top_level_resources()) == {"lake", "agents_lake", "agents_spark", "agents_tracking"}


def test_their_warnings_stay_visible(settings: Settings) -> None:
    build_definitions(settings)
    with pytest.warns(dg.BetaWarning, match="backfill_policy"):

        @dg.asset(partitions_def=THEIR_DAYS, backfill_policy=dg.BackfillPolicy.single_run())
        def all_at_once() -> None: ...

    with pytest.warns(dg.BetaWarning):

        @dg.asset(partitions_def=THEIR_DAYS, backfill_policy=dg.BackfillPolicy.multi_run(3))
        def three_at_once() -> None: ...

    job = dg.define_asset_job("mixed", selection=["all_at_once", "three_at_once"])
    mixed = dg.Definitions.merge(
        dg.Definitions(assets=[all_at_once, three_at_once], jobs=[job]), build_definitions(settings)
    )
    with pytest.warns(UserWarning, match="Asset job mixed .* varying BackfillPolicies") as caught:
        mixed.get_repository_def().load_all_definitions()
    assert not [warning for warning in caught if "team_agents" in str(warning.message)]


@pytest.mark.parametrize("dagster", [PREFIXED, DagsterSettings()])
def test_our_jobs_and_our_automation_select_only_our_assets(made: MadeProject, dagster: DagsterSettings) -> None:
    others = theirs()
    if dagster == DagsterSettings():  # names that differ need no prefix
        others = dg.Definitions(assets=[sales, prices, datasets_of_theirs])
    own = build_definitions(everything_of(made.settings, dagster))
    alone, merged = own.get_repository_def(), dg.Definitions.merge(others, own).get_repository_def()
    keys = alone.asset_graph.get_all_asset_keys()
    assert keys.isdisjoint(THEIR_KEYS)
    for job in alone.get_all_jobs():
        if job.name != "__ASSET_JOB":
            here = merged.get_job(job.name).asset_layer
            assert here.selected_asset_keys == job.asset_layer.selected_asset_keys, job.name
            assert here.asset_graph.asset_check_keys == job.asset_layer.asset_graph.asset_check_keys, job.name
    sensor = merged.get_sensor_def(dagster.names.definition("automation"))
    assert sensor.asset_selection is not None
    assert sensor.asset_selection.resolve(merged.asset_graph) == keys
    theirs_evaluated = merged.get_sensor_def("default_automation_condition_sensor").asset_selection
    assert theirs_evaluated is not None
    assert theirs_evaluated.resolve(merged.asset_graph) == merged.asset_graph.get_all_asset_keys() - keys


def test_two_pipelines_work_in_one_location(made: MadeProject) -> None:
    other = DagsterSettings(key_prefix=["other"])
    first = build_definitions(everything_of(made.settings, PREFIXED))
    both = dg.Definitions.merge(first, build_definitions(everything_of(made.settings, other)))
    graph, job = both.resolve_asset_graph(), both.resolve_job_def("other_monitoring")
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"team", "other"}
    assert {key.path[0] for key in job.asset_layer.selected_asset_keys} == {"other"}


def test_their_job_and_asset_run_with_their_lake(merged: dg.Definitions, instance: dg.DagsterInstance) -> None:
    result = merged.resolve_job_def("monitoring").execute_in_process(instance=instance)
    assert result.output_for_node("upkeep") == "fresh"
    hourly = merged.resolve_job_def("hourly").execute_in_process(instance=instance, partition_key="2026-01-01-05:00")
    assert hourly.output_for_node("orders") == "fresh"


def test_our_chain_runs_over_made_traces(
    made: MadeProject, settings: Settings, merged: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    steps: set[str] = set()
    result = run_chain(
        merged, settings, Work([WINDOW], WINDOW.days()), None, instance, lambda event: steps.add(event.step)
    )
    assert result.succeeded, result
    assert result.failed_steps == {}
    assert {"team/agents/archived_traces", "team/agents/daily_report"} <= steps
    for name in ("response_quality", "stage_latency"):
        assert len(made.scored(name)) == 40
        assert instance.get_materialized_partitions(OURS.key(scorer_key(name))) == {
            f"2026-01-01-{hour:02d}:00" for hour in range(5, 9)
        }
    assert instance.get_materialized_partitions(OURS.key("archived_traces"))
    assert len(made.rows(HOURLY_QUALITY, "stage_latency")) > 0
    for job in ("team_agents_datasets_job", "team_agents_weekly_report_job", "team_agents_alerts_job"):
        tags = {"datasets": "2026-01-01", "weekly_report": "2025-12-29"}
        day = tags.get(job.removeprefix("team_agents_").removesuffix("_job"))
        ran = merged.resolve_job_def(job).execute_in_process(
            instance=instance, run_config=QUIET, tags={RANGE_START: day, RANGE_END: day} if day else {}
        )
        assert ran.success, job
    for job in ("team_agents_latest_hour_job", "team_agents_upkeep_job", "team_agents_assess_job"):
        config = {
            "ops": {"team__agents__assess": {"config": {"start": FIRST[:10] + "T05:00Z", "end": "2026-01-01T09:00Z"}}}
        }
        ran = merged.resolve_job_def(job).execute_in_process(
            instance=instance, run_config={**QUIET, **(config if "assess" in job else {})}
        )
        assert ran.success, job
    latest = dg.AssetCheckKey(OURS.key("hourly_performance"), "latest_hour_is_there")
    [last] = instance.event_log_storage.get_asset_check_execution_history(latest, limit=1)
    assert last.partition is None  # from the job, not from a run of the asset


def test_our_backfills_run_and_are_launched(
    made: MadeProject, settings: Settings, merged: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    options = ScorerOptions(sample_rate=0.5)
    failed = run_backfills(merged, settings, WINDOW, ["stage_latency"], options, instance, lambda event: None)
    assert failed == {}
    assert 0 < len(made.scored("stage_latency")) < 40
    assert len(made.rows(SCORER_COVERAGE, "stage_latency")) > 0
    [backfill_id] = launch_backfills(merged, settings, WINDOW, ["stage_latency"], options, instance).values()
    backfill = instance.get_backfill(backfill_id)
    assert backfill is not None
    assert set(backfill.asset_selection or []) == {
        OURS.key(key) for key in (scorer_key("stage_latency"), "scorer_coverage", "hourly_quality")
    }
    assert list((backfill.run_config or {})["ops"]) == ["team__agents__assessments__stage_latency"]


def test_our_sensor_sees_only_its_own_runs(settings: Settings, merged: dg.Definitions, dagster_home: Path) -> None:
    sensor = merged.resolve_sensor_def("team_agents_new_traces")
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        resources = {OURS.resource(name): resource for name, resource in build_resources(settings).items()}
        with dg.build_sensor_context(
            instance, resources=resources, sensor_name=sensor.name, definitions=merged
        ) as context:
            tick = sensor.evaluate_tick(context)
        assert "cannot be compared" not in (tick.skip_message or "")
        for request in tick.run_requests or []:
            assert request.tags["monitoring/asked_by"] == "team_agents_new_traces"
        instance.create_run_for_job(
            job_def=merged.resolve_job_def("team_agents_archive_job"),
            asset_selection=frozenset({OURS.key("archived_traces")}),
            tags={RANGE_START: FIRST, RANGE_END: LAST},
            status=dg.DagsterRunStatus.STARTED,
        )
        now = datetime.now(UTC)
        assert hours_in_progress(instance, OURS, now) == set(WINDOW.hours())
        assert hours_in_progress(instance, NO_PREFIX, now) == set()


def test_prefixes_owners_and_tags_are_on_every_asset(settings: Settings) -> None:
    graph = build_definitions(settings).resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.get_all_asset_keys()]
    assert len(nodes) > 10
    for node in nodes:
        assert node.key.path[:2] == ["team", "agents"]
        assert (node.group_name or "").startswith("agents_")
        assert list(node.owners) == ["team:agents"]
        assert node.tags["domain"] == "support"
        assert node.tags["monitoring/pipeline"] == "team.agents"
        assert {check.asset_key for check in node.check_keys} <= {node.key}
        assert all(parent.path[:2] == ["team", "agents"] for parent in node.parent_keys)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_prefix": "a b"},
        {"key_prefix": "a//b"},
        {"group_prefix": "a/b"},
        {"resource_prefix": "1a"},
        {"owners": ["nobody"]},
        {"tags": {"monitoring/pipeline": "mine"}},
        {"tags": {"a b": "c"}},
        {"tags": {"a": "b c"}},
    ],
)
def test_names_that_dagster_refuses_are_refused_in_the_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DagsterSettings.model_validate(wrong)


def test_the_component_is_scaffolded_and_builds_the_definitions_of_its_file() -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(component_cls=MonitoringComponent)
        assert yaml.safe_load((folder / "defs.yaml").read_text())["attributes"] == {"config": CONFIG}
        settings = load_settings(folder / CONFIG)
        assert Path(settings.lake.location) == folder / "data" / "lake"
        with sandbox.load_component_and_build_defs(defs_path=folder) as (component, definitions):
            assert isinstance(component, MonitoringComponent)
            keys = definitions.resolve_asset_graph().get_all_asset_keys()
        assert keys == build_definitions(settings).resolve_asset_graph().get_all_asset_keys()
        assert dg.AssetKey(["agents", "archived_traces"]) in keys
        # Without a file beside the component, the project's is used.
        (folder / CONFIG).unlink()
        (sandbox.project_root / CONFIG).write_text('[dagster]\nkey_prefix = "project"\n')
        with sandbox.load_component_and_build_defs(defs_path=folder) as (_, definitions):
            keys = definitions.resolve_asset_graph().get_all_asset_keys()
        assert {key.path[0] for key in keys} == {"project"}


def test_the_package_registers_its_component() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    modules = pyproject["project"]["entry-points"][DG_PLUGIN_ENTRY_POINT_GROUP]
    [found] = [
        name
        for name in modules.values()
        for key in discover_package_objects([name])
        if key.name == "MonitoringComponent"
    ]
    assert found == MonitoringComponent.__module__


def test_importing_the_package_loads_no_settings_and_no_scorers(tmp_path: Path) -> None:
    """Imports every module except definitions, next to an unreadable monitoring.toml."""
    (tmp_path / CONFIG).write_bytes(b"\xff[")
    program = """
import importlib, pkgutil, sys
import monitoring_pipeline
for module in pkgutil.walk_packages(monitoring_pipeline.__path__, "monitoring_pipeline."):
    if module.name != "monitoring_pipeline.definitions" and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "monitoring_pipeline.definitions" not in sys.modules
"""
    without = {name: value for name, value in os.environ.items() if name != "MONITORING_CONFIG"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=without, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
