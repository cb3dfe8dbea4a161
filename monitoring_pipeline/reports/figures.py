"""The content of a report as one value, the source of its three formats; as JSON it is report.json."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd

from monitoring_pipeline.reports.changes import Change, changes
from monitoring_pipeline.reports.data import AGREEMENT_DAYS, ReportData
from monitoring_pipeline.reports.findings import findings, new_errors, verdict
from monitoring_pipeline.reports.links import trace_url
from monitoring_pipeline.reports.scorers import LEDGER, agreement_rows, as_floats, scorer_rows
from monitoring_pipeline.reports.stages import slowest_stages

TOP_ERRORS = 10
LATENCY = {"mean": "mean_duration_ms", "p50": "p50_duration_ms", "p95": "p95_duration_ms", "p99": "p99_duration_ms"}
COUNTS = {*LEDGER, "compared"}
SUMS = ["trace_count", "error_count", "input_tokens", "output_tokens", "total_tokens", "cost_usd"]


def figures(data: ReportData) -> dict[str, Any]:
    """The content of a report. Keys are stable between versions; versions may add keys.

    Numbers are not rounded; rates are shares (0 to 1), durations and latencies milliseconds, costs US dollars, times
    UTC. Unknown values are None, such as the latency of a day without traces. In JSON, times are ISO 8601.

    - kind ("day", "week"), name (2026-01-14, 2026-W03), date (the first day), start, end, is_complete (it was over)
    - total_requests, ok_count, error_count, success_rate, error_rate, latency (mean, p50, p95, p99), cost_usd,
      cost_per_trace_usd, scoring_cost_usd, input_tokens, output_tokens, total_tokens
    - hourly_volume (only for a day): traces by hour of the day; daily_volume (only for a week): traces by date
    - verdict: state (trouble, watch, good, empty), headline, sentences
    - findings, most urgent first: kind (incident, new_error, change, unread, unscored), severity (critical, warning,
      info), what, details, experiment_id, start, end, trace_id, url
    - changes: measure, experiment_id (None: all), scorer, against (the name of the earlier period), against_label,
      value, before, amount (value - before; value / before for counts, latencies and costs), low and high (its 99 %
      interval), beyond_noise, better
    - trend: a row for each hour of a day or day of a week, and experiment; scorer_trend: the same for each scorer; for
      a week also days (over all experiments) and worst_days (dates of days with incidents)
    - experiments, scorers, stages, agreement, and errors: is_new marks an error that the seven previous days did not
      have; compared_error_days is the number of these days that have traces (if 0, is_new is None)
    - worst_traces: failed, low_scores, slowest, most_expensive; each trace with the url of its page in MLflow, if known
    """
    total = _total(data)
    scorers = scorer_rows(data.quality_total, data.coverage)
    compared = changes(data)
    fresh = new_errors(data)
    found = findings(data, compared, scorers, fresh)
    state, headline, sentences = verdict(data, found, total)
    period, window = data.period, data.period.window
    days = _days(data)
    content = {
        "kind": period.kind,
        "name": period.name,
        "date": period.first_day,
        "start": window.start,
        "end": window.end,
        "is_complete": data.is_complete,
        "total_requests": int(total["trace_count"]),
        "ok_count": total["ok_count"],
        "error_count": int(total["error_count"]),
        "success_rate": total["success_rate"],
        "error_rate": total["error_rate"],
        "latency": {name: total[column] for name, column in LATENCY.items()},
        **_volume(data),
        "cost_usd": total["cost_usd"],
        "cost_per_trace_usd": total["cost_mean"],
        "scoring_cost_usd": scorers["scoring_cost_usd"].sum(min_count=1),
        **{name: total[name] for name in ("input_tokens", "output_tokens", "total_tokens")},
        "verdict": {"state": state, "headline": headline, "sentences": sentences},
        "findings": [
            {**asdict(finding), "url": _url(data, finding.experiment_id, finding.trace_id)} for finding in found
        ],
        "changes": [_change(change) for change in compared],
        "trend": _trend(data),
        **({"days": days, "worst_days": _worst_days(days)} if period.kind == "week" else {}),
        "scorer_trend": _scorer_trend(data),
        "experiments": _experiments(data),
        "scorers": [{"experiment": data.name_of(row["experiment_id"]), **row} for row in scorers.to_dict("records")],
        "errors": _errors(data, fresh),
        "error_traces": data.error_traces,
        "compared_error_days": data.known_error_days,
        "stages": _stages(data),
        "worst_traces": _worst(data),
        "agreement": [
            {"experiment": data.name_of(row["experiment_id"]), **row}
            for row in agreement_rows(data.agreement).to_dict("records")
        ],
        "agreement_days": AGREEMENT_DAYS,
    }
    return _plain(content)


def _total(data: ReportData) -> dict[str, Any]:
    """The totals of all traces of the period; without traces, counts are 0 and other values NaN."""
    totals = data.totals
    rows = totals[(totals["period"] == data.period.name) & totals["experiment_id"].isna()]
    row = {**dict.fromkeys(totals.columns, math.nan), **dict.fromkeys(["trace_count", "ok_count", "error_count"], 0)}
    row |= rows.iloc[0].to_dict() if len(rows) else {}
    count = row["trace_count"]
    return row | {
        "success_rate": row["ok_count"] / count if count else math.nan,
        "error_rate": row["error_count"] / count if count else math.nan,
    }


def _volume(data: ReportData) -> dict[str, dict[Any, int]]:
    counts = data.trend.groupby("hour")["trace_count"].sum()
    if data.period.kind == "day":
        return {"hourly_volume": {moment.hour: int(count) for moment, count in counts.items()}}  # type: ignore[attr-defined]
    return {"daily_volume": {f"{moment:%Y-%m-%d}": int(count) for moment, count in counts.items()}}


def _change(change: Change) -> dict[str, Any]:
    return {**asdict(change), "amount": change.amount, "beyond_noise": change.beyond_noise}


def _trend(data: ReportData) -> list[dict[str, Any]]:
    rows = data.trend.drop(columns=["trace_name", "date"], errors="ignore").rename(columns={"hour": "start"})
    return _records(rows, "start", "experiment_id")


def _scorer_trend(data: ReportData) -> list[dict[str, Any]]:
    rows = as_floats(data.quality_trend).drop(columns="date", errors="ignore").rename(columns={"hour": "start"})
    return _records(rows, "start", "experiment_id", "scorer")


def _days(data: ReportData) -> list[dict[str, Any]]:
    """Each day of a week, over all experiments; highest_p95_ms is the highest p95 of an experiment."""
    days = []
    for day, rows in data.trend.groupby(data.trend["hour"].dt.floor("D")):
        sums = rows[SUMS].sum(min_count=1).to_dict()
        standing_out = [i for i in data.incidents if i.start.floor("D") == day]
        rate, highest = sums["error_count"] / sums["trace_count"], rows["p95_duration_ms"].max()
        days.append(
            {"start": day, **sums, "error_rate": rate, "highest_p95_ms": highest, "incidents": len(standing_out)}
        )
    return days


def _worst_days(days: list[dict[str, Any]]) -> list[date]:
    """The days with incidents, most incidents first, then highest error rate."""
    troubled = [day for day in days if day["incidents"]]
    return [day["start"].date() for day in sorted(troubled, key=lambda day: (-day["incidents"], -day["error_rate"]))]


def _experiments(data: ReportData) -> list[dict[str, Any]]:
    """The experiments' totals, experiments with incidents first, then most traces first."""
    totals = data.totals
    rows = totals[(totals["period"] == data.period.name) & totals["experiment_id"].notna()]
    highest = data.hours.groupby("experiment_id")["p95_duration_ms"].max()
    troubled = {incident.experiment_id for incident in data.incidents}
    found = [
        {
            "experiment_id": row["experiment_id"],
            "experiment": data.name_of(row["experiment_id"]),
            **{name: row[name] for name in SUMS},
            "error_rate": row["error_count"] / row["trace_count"],
            **{column: row[column] for column in LATENCY.values()},
            "highest_hourly_p95_ms": highest.get(row["experiment_id"], math.nan),
            "has_incident": row["experiment_id"] in troubled,
        }
        for row in rows.to_dict("records")
    ]
    return sorted(found, key=lambda row: (not row["has_incident"], -row["trace_count"], row["experiment_id"]))


def _errors(data: ReportData, fresh: pd.DataFrame | None) -> list[dict[str, Any]]:
    new = None if fresh is None else set(zip(fresh["signature"], fresh["span_name"], strict=True))
    return [
        {
            "signature": row["signature"],
            "span_name": row["span_name"],
            "message": row["sample_message"],
            "trace_count": row["trace_count"],
            "first_seen": row["first_seen"],
            "last_seen": row["last_seen"],
            "is_new": None if new is None else (row["signature"], row["span_name"]) in new,
            **_example(data, row["experiment_id"], row["sample_trace_ids"][0]),
        }
        for row in data.errors.head(TOP_ERRORS).to_dict("records")
    ]


def _stages(data: ReportData) -> list[dict[str, Any]]:
    _, nearest = next(data.period.earlier())
    rows = slowest_stages(data.stages, data.stage_hours, data.period.name, nearest.name)
    return [{"experiment": data.name_of(row["experiment_id"]), **row} for row in rows.to_dict("records")]


def _worst(data: ReportData) -> dict[str, list[dict[str, Any]]]:
    columns = ["trace_hour", "trace_name", "status", "span_count", "duration_ms", "cost_usd"]
    kinds: dict[str, list[dict[str, Any]]] = {"failed": [], "low_scores": [], "slowest": [], "most_expensive": []}
    for row in data.worst.to_dict("records"):
        scores = [dict(score) for score in row["scores"]] if row["kind"] == "low_scores" else []
        kinds[row["kind"]].append(
            {
                **_example(data, row["experiment_id"], row["trace_id"]),
                "experiment": data.name_of(row["experiment_id"]),
                **{name: row[name] for name in columns},
                "scores": [{"scorer": score["scorer"], "score": score["score"]} for score in scores],
            }
        )
    return kinds


def _example(data: ReportData, experiment_id: Any, trace_id: str) -> dict[str, Any]:
    return {"trace_id": trace_id, "experiment_id": experiment_id, "url": _url(data, experiment_id, trace_id)}


def _url(data: ReportData, experiment_id: Any, trace_id: str | None) -> str | None:
    return None if trace_id is None or pd.isna(experiment_id) else trace_url(data.mlflow_ui, experiment_id, trace_id)


def _records(rows: pd.DataFrame, *order: str) -> list[dict[str, Any]]:
    return rows.sort_values(list(order)).to_dict("records")


def _plain(value: Any) -> Any:
    """`value` in Python's built-in types, with None for missing values and non-finite numbers."""
    if isinstance(value, dict):
        return {key: _whole(_plain(item)) if key in COUNTS else _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if value is pd.NaT:  # NaT is also a datetime
        return None
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime().astimezone(UTC)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | date | datetime | bool) or value is None:
        return value
    return None if pd.isna(value) or not math.isfinite(value) else value


def _whole(count: Any) -> Any:
    return int(count) if isinstance(count, float) else count
