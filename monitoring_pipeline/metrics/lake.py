"""Metrics from the tables: the archive's lag, traffic, quarantine, scorers' ledgers and budgets, and open alerts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.alerts.episodes import OPEN
from monitoring_pipeline.metrics.base import Metric, Sample
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.budgets import Purse
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.tables import ALERTS, ARCHIVED_HOURS, HOURLY_PERFORMANCE, QUARANTINED_TRACES, SCORER_COVERAGE
from monitoring_pipeline.windows import HOUR, Window, floor_hour

LEDGER_HOURS = 24
REACH = timedelta(days=14)  # how far back the newest hour, quarantined traces and open alerts are looked for
LEDGER = ("scored", "failed", "pending", "over_budget", "unsampled", "filtered_out", "stale")
QUANTILES = {"0.5": "p50_duration_ms", "0.95": "p95_duration_ms", "0.99": "p99_duration_ms"}


def lake_metrics(lake: LakeResource, scorers: Iterable[ConfiguredScorer], now: datetime) -> list[Metric]:
    """The metrics of the lake at `now`; those without a value have no samples."""
    scorers = list(scorers)
    recent = Window(floor_hour(now - REACH), floor_hour(now) + HOUR)
    return [
        _lag(lake, recent, now),
        *_latest_hour(lake, recent),
        Metric(
            "monitoring_quarantined_traces",
            f"Traces of the last {REACH.days} days that could not be read.",
            [({}, lake.read_columns(QUARANTINED_TRACES, recent, "trace_id").num_rows)],
        ),
        _ledger(lake, scorers, now),
        *_budgets(lake, scorers),
        _open_alerts(lake, recent),
    ]


def _lag(lake: LakeResource, recent: Window, now: datetime) -> Metric:
    newest = pc.max(lake.read_columns(ARCHIVED_HOURS, recent, "hour")["hour"]).as_py()
    lag = [] if newest is None else [({}, max(0.0, (now - newest - HOUR).total_seconds()))]
    return Metric("monitoring_archive_lag_seconds", "Time since the end of the newest archived hour.", lag)


def _latest_hour(lake: LakeResource, recent: Window) -> list[Metric]:
    """Traffic of the newest hour in `hourly_performance`, by experiment."""
    columns = ("hour", "experiment_id", "trace_name", "trace_count", "error_count", *QUANTILES.values())
    rows = lake.read_columns(HOURLY_PERFORMANCE, recent, *columns)
    newest = pc.max(rows["hour"])
    of_all_names = rows.filter(pc.equal(rows["hour"], newest)).filter(pc.field("trace_name").is_null()).to_pylist()
    durations = [
        ({**_experiment(row), "quantile": quantile}, row[column] / 1000)
        for row in of_all_names
        for quantile, column in QUANTILES.items()
        if row[column] is not None
    ]
    start: list[Sample] = [({}, newest.as_py().timestamp())] if newest.is_valid else []
    return [
        Metric("monitoring_latest_hour_start_seconds", "Start of the newest measured hour, in Unix time.", start),
        Metric(
            "monitoring_latest_hour_traces", "Traces of the newest measured hour.", _by(of_all_names, "trace_count")
        ),
        Metric(
            "monitoring_latest_hour_errors",
            "Traces of the newest measured hour that failed.",
            _by(of_all_names, "error_count"),
        ),
        Metric(
            "monitoring_latest_hour_duration_seconds",
            "Percentiles of the durations of the ended traces of the newest measured hour.",
            durations,
        ),
    ]


def _by(rows: list[dict[str, Any]], column: str) -> list[Sample]:
    return [(_experiment(row), row[column]) for row in rows]


def _experiment(row: dict[str, Any]) -> dict[str, str]:
    return {"experiment_id": row["experiment_id"] or ""}


def _ledger(lake: LakeResource, scorers: list[ConfiguredScorer], now: datetime) -> Metric:
    window = Window(floor_hour(now) - LEDGER_HOURS * HOUR, floor_hour(now) + HOUR)
    lines = lake.read_columns(SCORER_COVERAGE, window, "scorer", "scorer_digest", *LEDGER)
    samples: list[Sample] = []
    for scorer in scorers:
        own = lines.filter((pc.field("scorer") == scorer.name) & (pc.field("scorer_digest") == scorer.digest))
        samples += [({"scorer": scorer.name, "state": state}, _sum(own, state)) for state in LEDGER]
    return Metric(
        "monitoring_scorer_traces",
        f"Archived traces of the last {LEDGER_HOURS} hours by their state in the scorer's ledger.",
        samples,
    )


def _sum(rows: pa.Table, column: str) -> int:
    return pc.sum(rows[column]).as_py() or 0


def _budgets(lake: LakeResource, scorers: list[ConfiguredScorer]) -> list[Metric]:
    spent: list[Sample] = []
    limits_usd: list[Sample] = []
    traces: list[Sample] = []
    limits: list[Sample] = []
    for scorer in scorers:
        if scorer.budget == Budget():
            continue
        purse, labels = Purse(lake, scorer), {"scorer": scorer.name}
        if scorer.budget.max_usd_per_day is not None:
            spent.append((labels, purse.spent_usd))
            limits_usd.append((labels, scorer.budget.max_usd_per_day))
        if scorer.budget.max_traces_per_hour is not None:
            traces.append((labels, purse.traces))
            limits.append((labels, scorer.budget.max_traces_per_hour))
    return [
        Metric("monitoring_scorer_spent_usd", "Spent on the scorer in this UTC day, of its budget.", spent),
        Metric("monitoring_scorer_budget_usd", "The scorer's budget for a UTC day.", limits_usd),
        Metric("monitoring_scorer_hour_traces", "Traces scored in this clock hour, of the scorer's budget.", traces),
        Metric("monitoring_scorer_budget_traces", "The scorer's budget of traces for a clock hour.", limits),
    ]


def _open_alerts(lake: LakeResource, recent: Window) -> Metric:
    rows = lake.read_columns(ALERTS, recent, "rule", "severity", "state")
    counts = rows.filter(pc.field("state") == OPEN).group_by(["rule", "severity"]).aggregate([([], "count_all")])
    samples = [
        ({"rule": row["rule"], "severity": row["severity"] or ""}, row["count_all"]) for row in counts.to_pylist()
    ]
    return Metric("monitoring_open_alerts", f"Open alerts that began within {REACH.days} days.", samples)
