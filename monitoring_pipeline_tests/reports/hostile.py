"""A day in which every text is an attack on the reader of its report."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.tables import SCORER_AGREEMENT, SCORER_COVERAGE, SPAN_PROFILE
from monitoring_pipeline_tests.reports.frames import (
    DAY_BEFORE,
    ERROR_COLUMNS,
    PERIOD,
    SCORE_COLUMNS,
    STAGE_COLUMNS,
    TOTAL_COLUMNS,
    WORST_COLUMNS,
    agreement_row,
    columns,
    coverage_row,
    day_of,
    error_row,
    frame,
    moment,
    performance_row,
    quality_row,
    score_row,
    stage_hour,
    stage_rows,
    total_rows,
    worst,
)

ATTACK = (
    "\x00\u202e<script>alert(1)</script><img src=x onerror=alert(1)><a href='javascript:alert(1)'>x</a>\" onload=\"x\n"
    "![i](http://evil.example/i.png) [l](http://evil.example) | a | `c` **b** www.evil.example $x^2$ \\"
)
UI = "http://mlflow.example.org"


def hostile_day() -> ReportData:
    """Names, ids, scorers, statuses, spans and messages are `ATTACK`; one error is a megabyte long."""
    performance = [performance_row(hour, ATTACK, 100, 90 if hour == 9 else 1, 100) for hour in range(12)]
    quality = [quality_row(hour, ATTACK, ATTACK, 50, 0.1 if hour == 9 else 0.9) for hour in range(12)]
    before = [row | {"error_count": 0, "p95_duration_ms": 50.0} for row in performance]
    errors = [
        error_row(ATTACK, ATTACK, 9, 9, ATTACK) | {"span_type": ATTACK, "sample_trace_ids": [ATTACK]},
        error_row("\ud800", "x" * 1_000_000, 1, 9, ATTACK),
        error_row(None, None, 1, 9, ATTACK) | {"sample_trace_ids": ["javascript:alert(1)"]},
    ]
    scores = [score_row(period, ATTACK, ATTACK, 1000, rate) for period, rate in ((PERIOD.name, 0.5), (DAY_BEFORE, 0.9))]
    stages = [row | {"experiment_id": ATTACK, "span_type": ATTACK, "span_name": ATTACK} for row in stage_rows()[::2]]
    hours = [
        stage_hour(hour, 9000.0 if hour == 9 else 10.0)
        | {"experiment_id": ATTACK, "span_name": ATTACK, "span_type": ATTACK}
        for hour in range(12)
    ]
    traces = worst().assign(
        **dict.fromkeys(("trace_id", "experiment_id", "trace_name", "status"), ATTACK),
        trace_hour=pd.Timestamp(moment(9)),
    )
    traces["scores"] = [[{"scorer": ATTACK, "score": 0.0}] for _ in range(len(traces))]
    day = day_of(
        performance,
        quality,
        totals=columns([*total_rows(performance), *total_rows(before, DAY_BEFORE)], TOTAL_COLUMNS),
        scores=columns(scores, SCORE_COLUMNS),
        coverage=frame(SCORER_COVERAGE, [coverage_row(9, ATTACK, ATTACK, 100, 50, 30, 10)]),
        errors=columns(errors, ERROR_COLUMNS),
        known_errors=columns([], ERROR_COLUMNS),
        error_traces=11,
        incident_errors=columns([errors[0] | {"incident": 0}], [*ERROR_COLUMNS, "incident"]),
        stages=columns(stages, STAGE_COLUMNS),
        stage_hours=frame(SPAN_PROFILE, hours),
        worst=traces[WORST_COLUMNS],
        agreement=frame(SCORER_AGREEMENT, [agreement_row(0, ATTACK, ATTACK, "human", ATTACK, (5, 1, 2, 3))]),
        experiment_names={ATTACK: ATTACK},
        mlflow_ui=UI,
    )
    return replace(day, quality_total=day.quality_total.assign(scorer_digest=f"{ATTACK}-now"))
