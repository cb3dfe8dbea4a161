"""Frames for a report, drawn with a fixed seed: a support agent with a bad hour and a quiet search agent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from monitoring_pipeline.reports.daily import DailyReportData
from monitoring_pipeline.tables import (
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    TRACE_ERRORS,
    Table,
)

DAY = date(2026, 1, 14)
MIDNIGHT = datetime(2026, 1, 14, tzinfo=UTC)
SLOWEST_COLUMNS = ["trace_id", "trace_hour", "experiment_id", "trace_name", "status", "span_count", "duration_ms"]
INCIDENT_HOUR = 14
QUIET_HOURS = {("1", 3), ("1", 4)}


def frame(table: Table, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """`rows` with all of the table's columns, typed as the lake gives them; what a row lacks is null."""
    return pa.Table.from_pylist(rows, schema=table.schema).to_pandas()


def moment(hour: int, minute: int = 0) -> datetime:
    return MIDNIGHT + timedelta(hours=hour, minutes=minute)


def empty_day() -> DailyReportData:
    return DailyReportData(
        day=DAY,
        performance=frame(HOURLY_PERFORMANCE, []),
        quality=frame(HOURLY_QUALITY, []),
        daily_quality=frame(HOURLY_QUALITY, []).drop(columns="hour"),
        coverage=frame(SCORER_COVERAGE, []),
        slowest=pd.DataFrame(columns=pd.Index(SLOWEST_COLUMNS)),
        errors=frame(TRACE_ERRORS, []),
        agreement=frame(SCORER_AGREEMENT, []),
        experiment_names={},
    )


def performance_row(
    hour: int, experiment: str, name: str | None, traces: int, errors: int, p95: float
) -> dict[str, Any]:
    return {
        "hour": moment(hour),
        "experiment_id": experiment,
        "trace_name": name,
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
        "failed": 1,
        "cost_usd": 0.001 * scored,
    }


def incident_day() -> DailyReportData:
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
            half = traces // 2
            few = min(errors, half)
            performance += [
                performance_row(hour, experiment, None, traces, errors, p95),
                performance_row(hour, experiment, "answer", half, few, p95),
                performance_row(hour, experiment, "", traces - half, errors - few, p95),
            ]
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
    return replace(
        empty_day(),
        performance=frame(HOURLY_PERFORMANCE, performance),
        quality=frame(HOURLY_QUALITY, quality),
        daily_quality=daily_quality(quality),
        coverage=frame(SCORER_COVERAGE, coverage),
        slowest=slowest(),
        errors=frame(TRACE_ERRORS, errors_at(INCIDENT_HOUR, 70) + errors_at(9, 6)),
        agreement=frame(SCORER_AGREEMENT, agreement_rows()),
        experiment_names={"1": "support-agent"},
    )


def daily_quality(hourly: list[dict[str, Any]]) -> pd.DataFrame:
    """One row an experiment, scorer and digest; the hours' means will do for a picture."""
    rows = frame(HOURLY_QUALITY, hourly).groupby(["experiment_id", "scorer", "scorer_digest"], as_index=False)
    sums, means = (
        dict.fromkeys(["scored", "failed", "cost_usd"], "sum"),
        ["mean_score", "pass_rate", "ci_low", "ci_high"],
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
    """A day's counts; what a report shows is made of their sums alone."""
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


def slowest() -> pd.DataFrame:
    rows = [
        (
            f"tr-{n:032x}",
            moment(INCIDENT_HOUR),
            "1",
            "answer" if n % 3 else None,
            "ERROR" if n % 2 else "OK",
            9,
            9990.0 - 410 * n,
        )
        for n in range(10)
    ]
    return pd.DataFrame(rows, columns=pd.Index(SLOWEST_COLUMNS))


def errors_at(hour: int, traces: int) -> list[dict[str, Any]]:
    """Traces that fail in `retrieve`; every third one also in `answer`."""
    retrieve = {"span_id": "a", "name": "retrieve", "span_type": "RETRIEVER"}
    answer = {"span_id": "b", "name": "answer", "span_type": "CHAIN", "status_message": "ValueError: no documents"}
    timeout = "TimeoutError: vector index did not answer within 8 s\nTraceback (most recent call last):\n  ..."
    return [
        {
            "trace_id": f"tr-{hour:02d}-{n:03d}",
            "trace_hour": moment(hour),
            "experiment_id": "1",
            "timestamp": moment(hour, n % 60),
            "status": "ERROR",
            "error_spans": [retrieve | {"status_message": timeout}] + ([answer] if n % 3 == 0 else []),
        }
        for n in range(traces)
    ]
