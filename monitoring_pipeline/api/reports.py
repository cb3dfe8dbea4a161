"""The quality of a day as figures."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from monitoring_pipeline.settings import Settings, load_settings


def daily_quality_report(day: date | None = None, settings: Settings | None = None) -> dict[str, Any]:
    """The figures of the report of `day` (UTC; default: yesterday), read from the lake; nothing is written.

    Returns at least date, total_requests, error_count, success_rate and error_rate (shares, 0 to 1), latency (mean,
    p50, p95 and p99, in milliseconds), hourly_volume (traces by hour of the day), cost_usd, verdict, findings, changes,
    scorers, errors, stages and worst_traces; `monitoring_pipeline.reports.figures.figures` has all keys. A day without
    traces has total_requests 0, and None for unknown values. Times are datetimes in UTC; report.json is the same
    with times as text.

    Raises:
        MonitoringError: a scorer cannot be loaded, the lake cannot be read, or the archive no longer keeps that day.
    """
    from monitoring_pipeline.orchestration.partitions import check_kept
    from monitoring_pipeline.reports.figures import figures
    from monitoring_pipeline.reports.links import mlflow_ui
    from monitoring_pipeline.reports.period import Period
    from monitoring_pipeline.reports.reading import report_data
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.registry import load_scorers

    settings = settings or load_settings()
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    period = Period.day(day.date() if isinstance(day, datetime) else day or yesterday)
    lake = build_resources(settings)["lake"]
    check_kept(lake, period.window.start)
    return figures(report_data(lake, load_scorers(settings.scorers), period, mlflow_ui(settings)))
