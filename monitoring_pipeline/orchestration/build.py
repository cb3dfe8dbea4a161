"""Puts all Dagster objects together; importing it builds nothing."""

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
from monitoring_pipeline.orchestration.jobs import dataset_jobs, jobs
from monitoring_pipeline.orchestration.lost_runs import lost_runs_sensor
from monitoring_pipeline.orchestration.new_traces import new_traces_sensor
from monitoring_pipeline.orchestration.ops import assess_job, latest_hour_job
from monitoring_pipeline.orchestration.partitions import daily, hourly, weekly
from monitoring_pipeline.orchestration.schedules import schedules
from monitoring_pipeline.orchestration.upkeep_jobs import upkeep_jobs
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import Settings


def build_definitions(settings: Settings, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions for `settings`; `resources` replace those of the same name (`tracking`, `spark`, `lake`).

    Raises:
        SettingsError: a scorer cannot be loaded.
    """
    hours, days = hourly(settings.archive.start), daily(settings.archive.start)
    scorers = load_scorers(settings.scorers)
    ours = [scorer for scorer in scorers if not is_managed(scorer)]  # the others' results are in MLflow already
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
    assets = [
        *of_tables,
        *report_assets(days, weekly(settings.archive.start), scorers, settings),
        *dataset_assets(days, scorers, settings.datasets),
    ]
    all_jobs = [
        *jobs(),
        *dataset_jobs(settings.datasets),
        assess_job(settings),
        latest_hour_job(),
        *upkeep_jobs(settings),
    ]
    monitoring = dg.Definitions(
        assets=automated(assets, scorers, settings.automation),
        jobs=all_jobs,
        sensors=[
            new_traces_sensor(settings.archive, settings.sensor, settings.automation.enabled),
            automation_sensor(settings.automation),
            lost_runs_sensor(settings.automation.enabled),
        ],
        schedules=schedules(
            settings.archive,
            settings.automation,
            [job.name for job in all_jobs],
            settings.datasets,
            settings.upkeep.keep_archive_days,
        ),
        resources={**build_resources(_addresses_by_name(settings)), **(resources or {})},
        executor=dg.in_process_executor if settings.dagster.executor == "in_process" else dg.multiprocess_executor,
    )
    return dg.Definitions.merge(monitoring, alert_definitions(settings, scorers, settings.automation.enabled))


def _addresses_by_name(settings: Settings) -> Settings:
    """`settings` with addresses from the environment given as the names of their variables.

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
