"""Builds all Dagster definitions; importing this module builds nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import dagster as dg

from monitoring_pipeline.databricks.managed import is_managed
from monitoring_pipeline.orchestration.alerts import alert_definitions
from monitoring_pipeline.orchestration.assets.agreement import agreement_assets
from monitoring_pipeline.orchestration.assets.archive import archive_assets
from monitoring_pipeline.orchestration.assets.assessments import assessment_assets
from monitoring_pipeline.orchestration.assets.datasets import dataset_assets
from monitoring_pipeline.orchestration.assets.performance import performance_assets
from monitoring_pipeline.orchestration.assets.quality import quality_assets
from monitoring_pipeline.orchestration.assets.reports import report_assets
from monitoring_pipeline.orchestration.assets.write_back import write_back_assets
from monitoring_pipeline.orchestration.automation import automated, automation_sensor
from monitoring_pipeline.orchestration.databricks_jobs import on_databricks
from monitoring_pipeline.orchestration.jobs import jobs
from monitoring_pipeline.orchestration.lost_runs import lost_runs_sensor
from monitoring_pipeline.orchestration.naming import beta_parameters, named_asset
from monitoring_pipeline.orchestration.new_traces import new_traces_sensor
from monitoring_pipeline.orchestration.ops import assess_job, latest_hour_job
from monitoring_pipeline.orchestration.partitions import daily, hourly, weekly
from monitoring_pipeline.orchestration.schedules import schedules
from monitoring_pipeline.orchestration.upkeep_jobs import upkeep_jobs
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.settings import Settings


def build_definitions(settings: Settings, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions for `settings`; `resources` replace the default ones (`tracking`, `spark`, `lake`) by name.

    They fit into any code location: `dg.Definitions.merge(theirs, build_definitions(settings))`. Jobs, sensors and
    schedules select only our assets, each job has its executor, and `[dagster]` key_prefix, group_prefix and
    resource_prefix keep names apart.

    Raises:
        SettingsError: a scorer cannot be loaded.
    """
    scorers = load_scorers(settings.scorers, settings.scoring.unfinished_after_hours)
    names, enabled = settings.dagster.names, settings.automation.enabled
    with beta_parameters():
        assets = _assets(settings, scorers)
        alerts = alert_definitions(settings, scorers, enabled)
    assets = automated([named_asset(asset, settings.dagster) for asset in assets], scorers, settings.automation, names)
    all_jobs = [
        *jobs(settings.dagster, settings.datasets),
        assess_job(settings),
        latest_hour_job(settings.dagster),
        *upkeep_jobs(settings),
    ]
    pipeline = dg.Definitions(
        assets=assets,
        jobs=all_jobs,
        sensors=[
            new_traces_sensor(settings.archive, settings.sensor, names, enabled),
            automation_sensor(settings.automation, names),
            lost_runs_sensor(names, enabled),
        ],
        schedules=schedules(settings),
        resources={
            names.resource(name): resource
            for name, resource in {**build_resources(_addresses_by_name(settings)), **(resources or {})}.items()
        },
    )
    return dg.Definitions.merge(pipeline, alerts)


def _assets(settings: Settings, scorers: list[ConfiguredScorer]) -> list[dg.AssetsDefinition]:
    """All assets except alerts, under their names without prefix."""
    hours, days = hourly(settings.archive.start), daily(settings.archive.start)
    ours = [scorer for scorer in scorers if not is_managed(scorer)]  # MLflow has the others' results already
    of_tables = [
        *archive_assets(hours, settings.archive),
        *performance_assets(hours),
        *assessment_assets(
            hours, scorers, settings.backfill.max_partitions_per_run, settings.scoring.experiment, settings.archive
        ),
        *(write_back_assets(hours, ours) if settings.scoring.write_back else []),
        *quality_assets(hours, scorers),
        *agreement_assets(days, scorers),
    ]
    if settings.databricks.jobs:
        of_tables = [on_databricks(asset, settings) for asset in of_tables]
    return [
        *of_tables,
        *report_assets(days, weekly(settings.archive.start), scorers, settings),
        *dataset_assets(days, scorers, settings.datasets),
    ]


def _addresses_by_name(settings: Settings) -> Settings:
    """`settings` with addresses from the environment replaced by the name of their variable.

    The UI shows the values of resources, and an address may hold a password or token.
    """

    def by_name(variable: str, value: str | None) -> str | None:
        return dg.EnvVar(variable) if value is not None and os.environ.get(variable) == value else value

    mlflow, spark = settings.mlflow, settings.spark
    tracking_uri, remote = by_name("MLFLOW_TRACKING_URI", mlflow.tracking_uri), by_name("SPARK_REMOTE", spark.remote)
    return settings.model_copy(
        update={
            "mlflow": mlflow.model_copy(update={"tracking_uri": tracking_uri}),
            "spark": spark.model_copy(update={"remote": remote}),
        }
    )
