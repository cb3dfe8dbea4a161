"""A report as a run of an MLflow experiment: its files as artifacts, its main figures as metrics."""

from __future__ import annotations

from pathlib import Path

from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.figures import figures
from monitoring_pipeline.resources.tracking import TrackingResource, impatience

REPORT_TAG = "monitoring.report"
RUN_NAMES = {"day": "daily report", "week": "weekly report"}


def log_report(tracking: TrackingResource, experiment: str, data: ReportData, folder: Path) -> str:
    """Logs the files in `folder`, the report of `data`, and returns the id of the run.

    A run of the same period that is there, by its tag `monitoring.report`, is brought up to date; else there is a new
    one. The experiment is made if need be.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    report, name = figures(data), data.period.name
    metrics = {
        "total_requests": report["total_requests"],
        "error_rate": report["error_rate"],
        "p95_duration_ms": report["latency"]["p95"],
        "cost_usd": report["cost_usd"],
    }
    with impatience():
        experiment_id = tracking.experiment_id(experiment)
        with tracking.calls() as client:
            found = client.search_runs(
                [experiment_id],
                f"tags.`{REPORT_TAG}` = '{name}'",
                order_by=["attributes.start_time ASC"],
                max_results=1,
            )
            run = (
                found[0]
                if found
                else client.create_run(
                    experiment_id, run_name=f"{RUN_NAMES[data.period.kind]} {name}", tags={REPORT_TAG: name}
                )
            )
            for metric, value in metrics.items():
                if value is not None:
                    client.log_metric(run.info.run_id, metric, value)
            for file in sorted(folder.glob("report.*")):
                client.log_artifact(run.info.run_id, str(file))
            client.set_terminated(run.info.run_id)
    return run.info.run_id
