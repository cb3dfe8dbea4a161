"""Figures are cached per check, separately for different columns of a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from monitoring_pipeline.alerts.figures import Figures
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import TRACE_PERFORMANCE
from monitoring_pipeline.windows import HOUR, Window

HOUR_START = datetime(2026, 3, 2, 10, tzinfo=UTC)
WINDOW = Window(HOUR_START, HOUR_START + HOUR)


def test_reads_of_different_columns_are_cached_separately(lake: LakeResource) -> None:
    figures: Any = Figures(lake, {}, HOUR_START)
    assert list(figures._read(TRACE_PERFORMANCE, WINDOW, "duration_ms").columns) == ["duration_ms"]
    first = figures._read(TRACE_PERFORMANCE, WINDOW, "trace_name", "cost_usd")
    assert list(first.columns) == ["trace_name", "cost_usd"]
    assert figures._read(TRACE_PERFORMANCE, WINDOW, "trace_name", "cost_usd") is first
