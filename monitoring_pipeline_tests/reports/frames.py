"""Frames for a report, drawn with a fixed seed: a support agent with a bad hour and a quiet search agent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from monitoring_pipeline.analysis.signatures import error_signature
from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.standouts import incidents, standouts
from monitoring_pipeline.tables import (
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    SPAN_PROFILE,
    TRACE_PERFORMANCE,
    Table,
)

DAY = date(2026, 1, 14)
MIDNIGHT = datetime(2026, 1, 14, tzinfo=UTC)
PERIOD = Period.day(DAY)
DAY_BEFORE, WEEK_BEFORE = (earlier.name for _, earlier in PERIOD.earlier())
ERROR_COLUMNS = [
    *("signature", "span_name", "span_type", "trace_count", "span_count", "first_seen", "last_seen"),
    *("sample_trace_ids", "sample_message", "experiment_id"),
]
TOTAL_COLUMNS = [
    *("period", "experiment_id", "trace_count", "ok_count", "error_count"),
    *("mean_duration_ms", "p50_duration_ms", "p95_duration_ms", "p99_duration_ms", "p95_low", "p95_high"),
    *("input_tokens", "output_tokens", "total_tokens", "cost_usd", "costed", "cost_mean", "cost_variance"),
]
SCORE_COLUMNS = [
    *("period", "experiment_id", "scorer", "scorer_digest", "scored", "mean_score", "score_variance", "binary"),
    *("judged", "pass_rate"),
]
STAGE_COLUMNS = [
    *("period", "experiment_id", "span_type", "span_name", "span_count", "error_count", "total_ms", "self_time_ms"),
    "max_ms",
]
WORST_COLUMNS = [*TRACE_PERFORMANCE.columns.names, "kind", "scores"]
INCIDENT_HOUR = 14
QUIET_HOURS = {("1", 3), ("1", 4)}


def frame(table: Table, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """`rows` with all columns of the table, typed as in the lake; values that a row lacks are null."""
    return pa.Table.from_pylist(rows, schema=table.schema).to_pandas()


def moment(hour: int, minute: int = 0) -> datetime:
    return MIDNIGHT + timedelta(hours=hour, minutes=minute)


def columns(rows: list[dict[str, Any]], names: list[str]) -> pd.DataFrame:
    """`rows` as a frame with these columns, null where a row lacks one."""
    return pd.DataFrame(rows, columns=pd.Index(names))


def empty_day() -> ReportData:
    return ReportData(
        period=PERIOD,
        hours=frame(HOURLY_PERFORMANCE, []),
        trend=frame(HOURLY_PERFORMANCE, []),
        totals=columns([], TOTAL_COLUMNS),
        quality_trend=frame(HOURLY_QUALITY, []),
        quality_total=frame(HOURLY_QUALITY, []).drop(columns="hour"),
        scores=columns([], SCORE_COLUMNS),
        coverage=frame(SCORER_COVERAGE, []),
        errors=columns([], ERROR_COLUMNS),
        known_errors=None,
        known_error_days=0,
        error_traces=0,
        incidents=[],
        incident_errors=columns([], [*ERROR_COLUMNS, "incident"]),
        stages=columns([], STAGE_COLUMNS),
        stage_hours=frame(SPAN_PROFILE, []),
        worst=columns([], WORST_COLUMNS),
        agreement=frame(SCORER_AGREEMENT, []),
        experiment_names={},
    )


def day_of(performance: list[dict[str, Any]], quality: list[dict[str, Any]] | None = None, **frames: Any) -> ReportData:
    """The data of a report, with trend, totals and incidents computed from hourly rows."""
    hours = frame(HOURLY_PERFORMANCE, performance)
    made = {
        "hours": hours,
        "trend": hours,
        "totals": columns(total_rows(performance), TOTAL_COLUMNS),
        "quality_trend": frame(HOURLY_QUALITY, quality or []),
        "quality_total": quality_total(quality or []),
        "incidents": incidents(standouts(hours, scores_by_hour(quality or []))),
    }
    return replace(empty_day(), **{**made, **frames})


def scores_by_hour(quality: list[dict[str, Any]]) -> pd.DataFrame:
    """The moments of each hour's scores, for scorers without a pass rule."""
    rows = [
        {name: row[name] for name in ("hour", "experiment_id", "scorer", "scored", "mean_score")}
        | {"score_variance": row["mean_score"] * (1 - row["mean_score"]), "binary": 0, "judged": 0, "pass_rate": None}
        for row in quality
    ]
    names = ["hour", *(name for name in SCORE_COLUMNS if name not in ("period", "scorer_digest"))]
    return columns(rows, names).astype({"hour": "datetime64[us, UTC]"})


def total_rows(performance: list[dict[str, Any]], period: str = PERIOD.name) -> list[dict[str, Any]]:
    """Totals of each experiment and of all; percentiles are the highest of the hours, which is good enough here."""
    groups: dict[str | None, list[dict[str, Any]]] = {None: performance}
    for row in performance:
        groups.setdefault(row["experiment_id"], []).append(row)
    return [total_row(period, experiment, rows) for experiment, rows in groups.items() if rows]


def total_row(period: str, experiment: str | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    summed = ("trace_count", "error_count", "input_tokens", "output_tokens", "total_tokens", "cost_usd")
    sums = {name: sum(row[name] for row in rows) for name in summed}
    p95 = max(row["p95_duration_ms"] for row in rows)
    return {
        "period": period,
        "experiment_id": experiment,
        **sums,
        "ok_count": sums["trace_count"] - sums["error_count"],
        "mean_duration_ms": 0.5 * p95,
        "p50_duration_ms": 0.4 * p95,
        "p95_duration_ms": p95,
        "p99_duration_ms": 1.5 * p95,
        "p95_low": 0.9 * p95,
        "p95_high": 1.1 * p95,
        "costed": sums["trace_count"],
        "cost_mean": sums["cost_usd"] / sums["trace_count"],
        "cost_variance": 1e-6,
    }


def score_row(period: str, experiment: str, scorer: str, judged: int, pass_rate: float) -> dict[str, Any]:
    return {
        "period": period,
        "experiment_id": experiment,
        "scorer": scorer,
        "scorer_digest": f"{scorer}-now",
        "scored": judged,
        "mean_score": pass_rate,
        "score_variance": pass_rate * (1 - pass_rate),
        "binary": 1,
        "judged": judged,
        "pass_rate": pass_rate,
    }


def performance_row(hour: int, experiment: str, traces: int, errors: int, p95: float) -> dict[str, Any]:
    return {
        "hour": moment(hour),
        "experiment_id": experiment,
        "trace_name": None,
        "trace_count": traces,
        "error_count": errors,
        "error_rate": errors / traces,
        "avg_duration_ms": 0.5 * p95,
        "p50_duration_ms": 0.4 * p95,
        "p95_duration_ms": p95,
        "p99_duration_ms": 1.5 * p95,
        "span_count": 5 * traces,
        "input_tokens": 800 * traces,
        "output_tokens": 200 * traces,
        "total_tokens": 1000 * traces,
        "cost_usd": 0.004 * traces,
    }


def quality_row(hour: int, experiment: str, scorer: str, scored: int, mean: float) -> dict[str, Any]:
    half = 1.96 * (max(mean * (1 - mean), 0.02) / scored) ** 0.5
    return {
        "hour": moment(hour),
        "experiment_id": experiment,
        "scorer": scorer,
        "scorer_digest": f"{scorer}-now",
        "scored": scored,
        "mean_score": mean,
        "pass_rate": mean,
        "ci_low": max(0.0, mean - half),
        "ci_high": min(1.0, mean + half),
        "pass_low": max(0.0, mean - half),
        "pass_high": min(1.0, mean + half),
        "population": 2 * scored,
        "failed": 1,
        "cost_usd": 0.001 * scored,
    }


def incident_day() -> ReportData:
    """Two experiments; in experiment 1 at 14:00 41 % of the traces fail, in 9.1 s; none at 03:00 and 04:00."""
    random = np.random.default_rng(7)
    performance, quality, coverage = [], [], []
    for experiment, busiest in (("1", 180), ("2", 45)):
        for hour in range(24):
            if (experiment, hour) in QUIET_HOURS:
                continue
            traces = int(busiest * (0.6 + 0.4 * np.sin((hour - 8) / 24 * 2 * np.pi))) + 20
            bad = experiment == "1" and hour == INCIDENT_HOUR
            errors = round(0.41 * traces) if bad else int(random.binomial(traces, 0.03))
            p95 = 9100.0 if bad else float(random.normal(2200, 150))
            performance.append(performance_row(hour, experiment, traces, errors, p95))
            for scorer, rate, mean in (
                ("correctness", 0.1, 0.88),
                ("has_sources", 1.0, 0.95),
                ("is_polite", 1.0, 0.99),
            ):
                scored = max(1, round(rate * traces) - 1)
                low = bad and scorer == "has_sources"
                score = 0.52 if low else float(np.clip(random.normal(mean, 0.3 / scored**0.5), 0, 1))
                quality.append(quality_row(hour, experiment, scorer, scored, score))
                coverage.append(coverage_row(hour, experiment, scorer, traces, scored + 1, scored, failed=1))
    before = [row | {"error_count": 1, "p95_duration_ms": 2200.0} for row in performance]
    timeout = error_row("retrieve", TIMEOUT, 70, INCIDENT_HOUR)
    scores = [
        score_row(period, "1", "has_sources", 2000, rate)
        for period, rate in ((PERIOD.name, 0.93), (DAY_BEFORE, 0.95), (WEEK_BEFORE, 0.99))
    ]
    return day_of(
        performance,
        quality,
        totals=columns([*total_rows(performance), *total_rows(before, DAY_BEFORE)], TOTAL_COLUMNS),
        scores=columns(scores, SCORE_COLUMNS),
        coverage=frame(SCORER_COVERAGE, coverage),
        errors=columns([timeout, error_row("answer", "ValueError: no documents", 26, 9)], ERROR_COLUMNS),
        known_errors=columns([error_row("answer", "ValueError: no documents", 3, 1)], ERROR_COLUMNS),
        known_error_days=7,
        error_traces=76,
        incident_errors=columns([timeout | {"incident": 0}], [*ERROR_COLUMNS, "incident"]),
        stages=columns(stage_rows(), STAGE_COLUMNS),
        stage_hours=frame(
            SPAN_PROFILE, [stage_hour(hour, 8000 if hour == INCIDENT_HOUR else 150) for hour in range(24)]
        ),
        worst=worst(),
        agreement=frame(SCORER_AGREEMENT, agreement_rows()),
        experiment_names={"1": "support-agent"},
    )


TIMEOUT = "TimeoutError: vector index did not answer within 8 s"


def error_row(span: str | None, message: str | None, traces: int, hour: int, experiment: str = "1") -> dict[str, Any]:
    """A group of errors, first seen at five past the hour."""
    return {
        "signature": error_signature(message),
        "span_name": span,
        "span_type": "TOOL",
        "trace_count": traces,
        "span_count": traces,
        "first_seen": pd.Timestamp(moment(hour, 5)),
        "last_seen": pd.Timestamp(moment(hour, 55)),
        "sample_trace_ids": [f"tr-{hour:02d}-{n:03d}" for n in range(min(traces, 5))],
        "sample_message": message,
        "experiment_id": experiment,
    }


def stage_rows() -> list[dict[str, Any]]:
    """Two stages on three days; retrieve has a self time of 500 ms, and had 150 ms the day before."""
    rows = []
    for period, own in ((PERIOD.name, 500.0), (DAY_BEFORE, 150.0), (WEEK_BEFORE, 150.0)):
        for name, self_ms in (("retrieve", own), ("answer", 100.0)):
            figures = {"span_count": 1000, "error_count": 70, "total_ms": 1000 * self_ms, "max_ms": 9000.0}
            rows.append(
                {"period": period, "experiment_id": "1", "span_type": "TOOL", "span_name": name, **figures}
                | {"self_time_ms": 1000 * self_ms}
            )
    return rows


def stage_hour(hour: int, self_ms: float, name: str = "retrieve") -> dict[str, Any]:
    times = dict.fromkeys(("avg_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"), self_ms)
    place = {"hour": moment(hour), "experiment_id": "1", "span_type": "TOOL", "span_name": name}
    return place | times | {"span_count": 40, "error_count": 0, "total_ms": 40 * self_ms, "self_time_ms": 40 * self_ms}


def worst() -> pd.DataFrame:
    """Ten slow traces, every other one failed, and one that fails two scorers."""
    rows = [
        {
            "kind": "slowest",
            "trace_id": f"tr-{n:032x}",
            "trace_hour": pd.Timestamp(moment(INCIDENT_HOUR)),
            "experiment_id": "1",
            "trace_name": "answer" if n % 3 else None,
            "status": "ERROR" if n % 2 else "OK",
            "span_count": 9,
            "duration_ms": 9990.0 - 410 * n,
            "cost_usd": 0.01,
        }
        for n in range(10)
    ]
    scores = [{"scorer": "has_sources", "score": 0.0}, {"scorer": "is_polite", "score": 0.25}]
    low = rows[3] | {"kind": "low_scores", "scores": scores}
    return columns([*rows, low, rows[1] | {"kind": "failed"}, rows[2] | {"kind": "most_expensive"}], WORST_COLUMNS)


def quality_total(hourly: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per experiment, scorer and digest; means of the hours are good enough here."""
    rows = frame(HOURLY_QUALITY, hourly).assign(covered_hours=1, hours=1)
    rows = rows.groupby(["experiment_id", "scorer", "scorer_digest"], as_index=False)
    sums, means = (
        dict.fromkeys(["scored", "failed", "cost_usd", "population", "covered_hours", "hours"], "sum"),
        ["mean_score", "pass_rate", "ci_low", "ci_high", "pass_low", "pass_high"],
    )
    return pd.DataFrame(rows.agg(sums | dict.fromkeys(means, "mean")))


def coverage_row(
    hour: int, experiment: str, scorer: str, archived: int, eligible: int, scored: int, failed: int, digest: str = "now"
) -> dict[str, Any]:
    return {
        "hour": moment(hour),
        "experiment_id": experiment,
        "scorer": scorer,
        "scorer_digest": f"{scorer}-{digest}",
        "archived": archived,
        "filtered_out": 0,
        "unsampled": archived - eligible,
        "eligible": eligible,
        "scored": scored,
        "failed": failed,
        "over_budget": 0,
        "pending": eligible - scored - failed,
    }


def agreement_row(
    days_ago: int, experiment: str, scorer: str, reference: str, name: str, counts: tuple[int, int, int, int]
) -> dict[str, Any]:
    """A day's counts; a report uses only their sums."""
    return {
        "day": MIDNIGHT - timedelta(days=days_ago),
        "experiment_id": experiment,
        "scorer": scorer,
        "scorer_digest": f"{scorer}-now",
        "reference": reference,
        "reference_name": name,
        **dict(zip(("pass_pass", "pass_fail", "fail_pass", "fail_fail"), counts, strict=True)),
    }


def agreement_rows() -> list[dict[str, Any]]:
    """Counts of several days: with people, with an earlier digest, and with people who found nothing wrong."""
    return [
        agreement_row(0, "1", "correctness", "digest", "3f9c51aa02b7d416", (410, 12, 9, 55)),
        agreement_row(0, "1", "correctness", "human", "correctness", (20, 3, 2, 5)),
        agreement_row(1, "1", "correctness", "human", "correctness", (30, 1, 4, 6)),
        agreement_row(9, "1", "correctness", "human", "correctness", (11, 0, 0, 4)),
        agreement_row(3, "2", "is_polite", "human", "thumbs_up", (8, 0, 1, 0)),
    ]
