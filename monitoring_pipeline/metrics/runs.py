"""Metrics from Dagster: the pipeline's runs of the last day."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import dagster as dg

from monitoring_pipeline.keys import Names
from monitoring_pipeline.metrics.base import Metric, Sample

REACH = timedelta(hours=24)
MOST_RUNS = 5_000
RETRY = "dagster/retry_number"


def run_metrics(instance: dg.DagsterInstance, names: Names, now: datetime) -> list[Metric]:
    """The pipeline's runs that began in the last 24 hours: how many by job and status, retries, and durations."""
    begun = dg.RunsFilter(created_after=now - REACH)
    records = [
        record
        for record in instance.get_run_records(begun, limit=MOST_RUNS)  # newest first
        if names.owns(record.dagster_run.job_name, record.dagster_run.asset_selection)
    ]
    by_status = Counter((record.dagster_run.job_name, record.dagster_run.status.value) for record in records)
    retries = Counter(record.dagster_run.job_name for record in records if RETRY in record.dagster_run.tags)
    lasted: dict[str, Sample] = {}
    for record in records:
        job = record.dagster_run.job_name
        if record.start_time and record.end_time and record.dagster_run.status is dg.DagsterRunStatus.SUCCESS:
            lasted.setdefault(job, ({"job": job}, record.end_time - record.start_time))
    return [
        Metric(
            "monitoring_runs",
            "The pipeline's runs of the last 24 hours.",
            [({"job": job, "status": status.lower()}, count) for (job, status), count in sorted(by_status.items())],
        ),
        Metric(
            "monitoring_run_retries",
            "Runs of the last 24 hours that repeat one that failed.",
            [({"job": job}, count) for job, count in sorted(retries.items())],
        ),
        Metric(
            "monitoring_last_run_duration_seconds",
            "Duration of the newest run of the last 24 hours that succeeded.",
            [lasted[job] for job in sorted(lasted)],
        ),
    ]
