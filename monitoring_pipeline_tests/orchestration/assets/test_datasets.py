"""The assets of datasets: files, MLflow datasets and metadata of a day's run, and when days are due."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import freeze_time
from mlflow.genai.datasets import get_dataset

from monitoring_pipeline.api import read_dataset
from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.keys import DATASETS, MONITORING, RANGE_END, RANGE_START, dataset_key, scorer_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import ArchiveSettings, DatasetSettings, Settings
from monitoring_pipeline_tests.made_project import IDS, QUALITY, WINDOW, MadeProject

DAY = "2026-01-01"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def dataset(made: MadeProject, name: str, kind: Any, **values: Any) -> DatasetSettings:
    return DatasetSettings(name=name, kind=kind, location=str(made.folder / "datasets"), **values)


def having(made: MadeProject, *datasets: DatasetSettings) -> Settings:
    return made.settings.model_copy(update={"datasets": [*datasets]})


def run(
    settings: Settings, instance: dg.DagsterInstance, first: str = DAY, last: str = DAY
) -> dict[tuple[str, str], dict[str, Any]]:
    """Materialise the datasets of the days; returns the metadata of each dataset and day."""
    result = (
        build_definitions(settings)
        .resolve_job_def(DATASETS)
        .execute_in_process(instance=instance, tags={RANGE_START: first, RANGE_END: last}, run_config=QUIET)
    )
    found = {}
    for event in result.get_asset_materialization_events():
        made = event.step_materialization_data.materialization
        metadata = {name: entry.value for name, entry in made.metadata.items()}
        found[made.asset_key.path[-1], str(made.partition)] = metadata
    return found


def test_a_day_is_written_to_files_and_once_to_mlflow(made: MadeProject, instance: dg.DagsterInstance) -> None:
    prod = dataset(made, "prod", "traces", filter="tags.env = 'prod'", mlflow=True, formats=["jsonl", "parquet"])
    settings = having(made, prod)
    figures = run(settings, instance)["prod", DAY]
    assert (figures["record_count"], figures["mlflow_records"], figures["mlflow_records_added"]) == (20, 20, 20)
    folder = made.folder / "datasets" / "prod" / DAY
    records = read_dataset(folder)
    assert {record["metadata"]["source_trace"] for record in records} == set(IDS[::2])
    assert figures["source_traces"].split(", ") == [record["metadata"]["source_trace"] for record in records[:5]]
    assert figures["manifest"] == str(folder / "manifest.json")
    with global_tracking_uri(settings.mlflow.tracking_uri):
        there = get_dataset("prod")
        assert there.dataset_id == figures["mlflow_dataset_id"]
        assert len(there.to_df()) == 20
    again = run(settings, instance)["prod", DAY]
    assert (again["mlflow_records"], again["mlflow_records_added"]) == (20, 0)
    assert again["digest"] == figures["digest"]


def test_each_day_of_a_range_has_its_own(made: MadeProject, instance: dg.DagsterInstance) -> None:
    day, trailing = dataset(made, "day", "traces"), dataset(made, "trailing", "diverse", days=2, sample_size=7)
    figures = run(having(made, day, trailing), instance, DAY, "2026-01-03")
    assert {key: entry["record_count"] for key, entry in figures.items()} == {
        ("day", DAY): 40,
        ("day", "2026-01-02"): 0,
        ("day", "2026-01-03"): 0,
        ("trailing", DAY): 7,
        ("trailing", "2026-01-02"): 7,
        ("trailing", "2026-01-03"): 0,
    }
    assert read_dataset(made.folder / "datasets" / "day" / "2026-01-03") == []


def test_a_dataset_of_failures_runs_after_its_scorer(made: MadeProject, instance: dg.DagsterInstance) -> None:
    strict = QUALITY.model_copy(update={"params": {"min_characters": 1, "error_keyword": "7"}, "pass_if": ">= 1"})
    project = made.having(strict)
    settings = having(project, dataset(made, "failures", "failures", scorer=QUALITY.name))
    (scorer,) = load_scorers([strict])
    score_window(project.lake, scorer, WINDOW, "run")
    assert run(settings, instance)["failures", DAY]["record_count"] == 4  # 7, 17, 27 and 37
    graph = build_definitions(settings).resolve_asset_graph()
    parents = graph.get(dataset_key("failures")).parent_keys
    assert parents == {dg.AssetKey("archived_traces"), scorer_key(QUALITY.name)}
    records = read_dataset(made.folder / "datasets" / "failures" / DAY)
    assert {record["metadata"]["scorer_digest"] for record in records} == {scorer.digest}


def test_a_dataset_depends_on_the_hours_of_all_its_days(made: MadeProject) -> None:
    graph = build_definitions(having(made, dataset(made, "three", "traces", days=3))).resolve_asset_graph()
    parent, child = graph.get(dg.AssetKey("archived_traces")), graph.get(dataset_key("three"))
    mapping = graph.get_partition_mapping(child.key, parent.key)
    days, hours = child.partitions_def, parent.partitions_def
    assert days is not None
    assert hours is not None

    def hours_of(day: str) -> list[str]:
        found = mapping.get_upstream_mapped_partitions_result_for_partitions(
            days.subset_with_partition_keys([day]), days, hours, current_time=datetime(2026, 1, 9, tzinfo=UTC)
        )
        return sorted(found.partitions_subset.get_partition_keys())

    assert (len(hours_of("2026-01-05")), hours_of("2026-01-05")[0]) == (72, "2026-01-03-00:00")
    assert len(hours_of("2026-01-01")) == 24  # there are no earlier hours


def test_the_version_changes_with_the_choice_and_with_the_scorer(made: MadeProject) -> None:
    def version(entry: DatasetSettings, project: MadeProject = made) -> str | None:
        graph = build_definitions(having(project, entry)).resolve_asset_graph()
        return graph.get(dataset_key(entry.name)).code_version

    low = dataset(made, "low", "regression", scorer=QUALITY.name)
    others = [
        dataset(made, "low", "regression", scorer=QUALITY.name, threshold=0.4),
        dataset(made, "low", "failures", scorer=QUALITY.name),
        dataset(made, "low", "regression", scorer=QUALITY.name, days=2),
    ]
    changed = made.having(QUALITY.model_copy(update={"params": {"min_characters": 5}}))
    versions = [version(low), *map(version, others), version(low, changed)]
    assert len(set(versions)) == len(versions)
    assert version(dataset(made, "low", "regression", scorer=QUALITY.name, mlflow=True)) == versions[0]


def test_the_chain_leaves_datasets_out(made: MadeProject) -> None:
    definitions = build_definitions(having(made, dataset(made, "day", "traces")))
    hourly = definitions.resolve_job_def(MONITORING).asset_layer.selected_asset_keys
    assert dataset_key("day") not in hourly
    assert definitions.resolve_job_def(DATASETS).asset_layer.selected_asset_keys == {dataset_key("day")}
    assert not build_definitions(made.settings).resolve_asset_graph().has(dataset_key("day"))


def test_an_invalid_filter_is_reported_before_anything_runs(made: MadeProject) -> None:
    with pytest.raises(SettingsError, match=r"^dataset 'day': trace filter 'nonsense'"):
        build_definitions(having(made, dataset(made, "day", "traces", filter="nonsense")))


def test_the_schedule_requests_datasets_not_built_since_the_day_ended(made: MadeProject, dagster_home: Path) -> None:
    one, other = dataset(made, "one", "traces"), dataset(made, "other", "diverse")
    archive = ArchiveSettings(start=datetime(2020, 1, 1, tzinfo=UTC))
    settings = having(made, one, other).model_copy(update={"archive": archive})
    repository = build_definitions(settings).get_repository_def()
    schedule = repository.get_schedule_def("daily_datasets")
    assert schedule.job_name == DATASETS
    at = datetime(2020, 1, 3, 1, 30, tzinfo=UTC)
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:

        def requested() -> list[tuple[str | None, list[str], str | None]]:
            with dg.build_schedule_context(instance, scheduled_execution_time=at, repository_def=repository) as context:
                requests = schedule.evaluate_tick(context).run_requests or []
            return [
                (request.partition_key, [key.path[-1] for key in request.asset_selection or []], request.run_key)
                for request in requests
            ]

        def make(name: str, day: str, moment: datetime) -> None:
            with freeze_time(moment):
                event = dg.AssetMaterialization(dataset_key(name), partition=day)
                instance.report_runless_asset_event(event)

        first, second = "2020-01-01 at 2020-01-03T01:30Z", "2020-01-02 at 2020-01-03T01:30Z"
        assert requested() == [("2020-01-01", ["one", "other"], first), ("2020-01-02", ["one", "other"], second)]
        make("one", "2020-01-01", at - timedelta(hours=20))
        make("other", "2020-01-02", at - timedelta(hours=2))  # before the day ended
        assert requested() == [("2020-01-01", ["other"], first), ("2020-01-02", ["one", "other"], second)]
        for name in ("one", "other"):
            for day in ("2020-01-01", "2020-01-02"):
                make(name, day, at)
        assert requested() == []
