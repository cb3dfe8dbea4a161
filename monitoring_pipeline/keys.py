"""Names in Dagster: keys of assets, groups, jobs, sensors, schedules, tags of runs, partitions.

These are the names in our own code location. In a shared one, `Names` adds the prefixes of [dagster].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from monitoring_pipeline.tables import TABLES

# Assets.
ARCHIVE_KEY = "archived_traces"
RESULTS_IN_MLFLOW = "results_in_mlflow"
DAILY_REPORT_KEY = "daily_report"
WEEKLY_REPORT_KEY = "weekly_report"

ASSESSMENTS_KEY = "assessments"  # prefix of the keys of scorers

# Asset groups that jobs select.
DATASETS_GROUP = "datasets"
REPORTS_GROUP = "reports"
ALERTS_GROUP = "alerts"

# Jobs.
MONITORING = "monitoring"
ARCHIVE = "archive_job"
DAILY_REPORT = "daily_report_job"
WEEKLY_REPORT = "weekly_report_job"
DATASETS = "datasets_job"
ALERTS_JOB = "alerts_job"
ASSESS = "assess_job"
LATEST_HOUR = "latest_hour_job"
UPKEEP = "upkeep_job"
DELETE = "delete_traces_job"
ASSETS = "__ASSET_JOB"  # Dagster's own job over all assets of a code location; it takes no prefix

JOBS = (
    MONITORING,
    ARCHIVE,
    DAILY_REPORT,
    WEEKLY_REPORT,
    DATASETS,
    ALERTS_JOB,
    ASSESS,
    LATEST_HOUR,
    UPKEEP,
    DELETE,
)

# Sensors.
NEW_TRACES = "new_traces"
AUTOMATION = "automation"
LOST_RUNS = "lost_runs"

# Tags of assets.
PIPELINE_TAG = "monitoring/pipeline"  # on all our assets, and on runs that have recorded their process

# Tags of runs.
PARTITION = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
PRIORITY = "dagster/priority"
PROCESS_TAG = "monitoring/process"  # the host, process id and start of the process that executes the run
WHOLE_CHAIN_TAG = "monitoring/whole_chain"  # on every run of the job `monitoring`, which selects no single scorer
INPUTS_TAG = (
    "monitoring/inputs"  # on runs of all assets of their hours: a hash of what decides the results, see unchanged.py
)
# On runs that the sensor new_traces requests: its name, the source's counts of each hour, and the attempt.
REQUESTED_BY_TAG = "monitoring/asked_by"
COUNTS_TAG = "monitoring/source_counts"
ATTEMPT_TAG = "monitoring/attempt"
AUTOMATION_TAGS = {  # Dagster sets one of them on every automatic run
    "dagster/sensor_name",
    "dagster/schedule_name",
    "dagster/auto_materialize",
    "dagster/from_automation_condition",
}


# The first parts of our assets' keys, after the prefix.
OWN_KEYS = frozenset(
    [
        ARCHIVE_KEY,
        RESULTS_IN_MLFLOW,
        DAILY_REPORT_KEY,
        WEEKLY_REPORT_KEY,
        ASSESSMENTS_KEY,
        DATASETS_GROUP,
        *(table.name for table in TABLES),
    ]
)


def scorer_key(name: str) -> dg.AssetKey:
    """Return the key of a scorer's asset."""
    return dg.AssetKey([ASSESSMENTS_KEY, name])


def dataset_key(name: str) -> dg.AssetKey:
    """Return the key of a dataset's asset."""
    return dg.AssetKey([DATASETS_GROUP, name])


def partition_key(hour: datetime) -> str:
    """Return the key of the hourly partition that starts at `hour`."""
    return f"{hour:%Y-%m-%d-%H:%M}"


@dataclass(frozen=True)
class Names:
    """The names of our definitions in a code location: the names in this module with the prefixes of [dagster]."""

    key_prefix: tuple[str, ...] = ()
    group_prefix: str | None = None
    resource_prefix: str | None = None

    def key(self, key: dg.AssetKey | str) -> dg.AssetKey:
        """Return the key of one of our assets."""
        return (dg.AssetKey(key) if isinstance(key, str) else key).with_prefix(self.key_prefix)

    def definition(self, name: str) -> str:
        """Return the name of one of our jobs, sensors or schedules."""
        return "_".join([*self.key_prefix, name])

    def op(self, name: str) -> str:
        """Return the name of an op; an asset's op has its key's parts joined by two underscores, as in Dagster."""
        return "__".join([*self.key_prefix, name])

    def group(self, name: str) -> str:
        """Return the name of one of our asset groups."""
        return f"{self.group_prefix}_{name}" if self.group_prefix else name

    def resource(self, name: str) -> str:
        """Return the key of one of our resources: `tracking`, `spark` or `lake`."""
        return f"{self.resource_prefix}_{name}" if self.resource_prefix else name

    def owns(self, job_name: str | None, selection: Iterable[dg.AssetKey] | None) -> bool:
        """Return whether a run or backfill of this job and these assets (None: all) belongs to the pipeline."""
        if job_name in [*map(self.definition, JOBS)] or (job_name == ASSETS and selection is None):
            return True
        depth = len(self.key_prefix)
        return any(
            key.path[:depth] == [*self.key_prefix] and not OWN_KEYS.isdisjoint(key.path[depth : depth + 1])
            for key in selection or ()
        )

    @property
    def tags(self) -> dict[str, str]:
        """The tag on all our assets and runs; its value distinguishes two pipelines on one instance."""
        return {PIPELINE_TAG: ".".join(self.key_prefix) or MONITORING}

    @property
    def ours(self) -> dg.AssetSelection:
        """A selection of all our assets, without other assets of the code location."""
        ((tag, value),) = self.tags.items()
        return dg.AssetSelection.tag(tag, value)


NO_PREFIX = Names()
