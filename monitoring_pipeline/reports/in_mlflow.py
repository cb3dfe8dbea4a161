"""Logs a report as a run of an MLflow experiment: its files as artifacts, its main figures as metrics."""

from __future__ import annotations

from pathlib import Path

from monitoring_pipeline.reports.report import Report
from monitoring_pipeline.resources.tracking import TrackingResource, impatience

REPORT_TAG = "monitoring.report"
RUN_NAMES = {"day": "daily report", "week": "weekly report"}


def log_report(tracking: TrackingResource, experiment: str, report: Report, folder: Path) -> str:
    """Log the report's files in `folder` and its main figures; return the id of the MLflow run.

    Updates the run that has the period's name in its tag `monitoring.report`, or creates one. Creates the experiment
    if it does not exist.

    Raises:
        TrackingError: MLflow cannot be reached, or rejects the request.
    """
    figures, period = report.figures, report.data.period
    metrics = {
        "total_requests": figures["total_requests"],
        "error_rate": figures["error_rate"],
        "p95_duration_ms": figures["latency"]["p95"],
        "cost_usd": figures["cost_usd"],
    }
    with impatience():
        experiment_id = tracking.experiment_id(experiment)
        with tracking.calls() as client:
            found = client.search_runs(
                [experiment_id],
                f"tags.`{REPORT_TAG}` = '{period.name}'",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            run = (
                found[0]
                if found
                else client.create_run(
                    experiment_id,
                    run_name=f"{RUN_NAMES[period.kind]} {period.name}",
                    tags={REPORT_TAG: period.name},
                )
            )
            for metric, value in metrics.items():
                if value is not None:
                    client.log_metric(run.info.run_id, metric, value)
            for file in sorted(folder.glob("report.*")):
                client.log_artifact(run.info.run_id, str(file))
            client.set_terminated(run.info.run_id)
    return run.info.run_id
