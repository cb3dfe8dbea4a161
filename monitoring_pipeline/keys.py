"""Names that Dagster and people see: keys of assets, names of jobs, tags of runs, keys of partitions."""

from __future__ import annotations

from datetime import datetime

import dagster as dg

# Assets.
ARCHIVE_KEY = "archived_traces"
RESULTS_IN_MLFLOW = "results_in_mlflow"
DAILY_REPORT_KEY = "daily_report"
WEEKLY_REPORT_KEY = "weekly_report"
GROUP = "datasets"

# Jobs.
MONITORING = "monitoring"
ARCHIVE = "archive_job"
DAILY_REPORT = "daily_report_job"
WEEKLY_REPORT = "weekly_report_job"
DATASETS = "datasets_job"
ASSETS = "__ASSET_JOB"  # Dagster's own job over all assets

# Tags of runs.
PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
HOST_TAG = "monitoring/host"  # the machine of a run that a command runs in its own process
AUTOMATION_TAGS = {  # Dagster sets one of them on every run that no person started
    "dagster/sensor_name",
    "dagster/schedule_name",
    "dagster/auto_materialize",
    "dagster/from_automation_condition",
}


def scorer_key(name: str) -> dg.AssetKey:
    """The key of a scorer's asset."""
    return dg.AssetKey(["assessments", name])


def dataset_key(name: str) -> dg.AssetKey:
    """The key of a dataset's asset."""
    return dg.AssetKey([GROUP, name])


def partition_key(hour: datetime) -> str:
    """The key of the hourly partition that starts at `hour`."""
    return f"{hour:%Y-%m-%d-%H:%M}"
