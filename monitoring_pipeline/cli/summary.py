"""The summary of a range of hours, read from the lake after a run."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.coverage import is_of
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    QUARANTINED_TRACES,
    SCORER_COVERAGE,
    TRACE_PERFORMANCE,
)
from monitoring_pipeline.windows import Window


@dataclass(frozen=True)
class ScorerSummary:
    """The counts of a scorer's ledger over the range, and its mean score."""

    scorer: str
    digest: str
    archived: int
    filtered_out: int
    unsampled: int
    scored: int
    failed: int
    over_budget: int
    pending: int
    mean_score: float | None


@dataclass(frozen=True)
class Summary:
    """Figures of the range; rates are shares from 0 to 1, None when there is nothing to measure."""

    traces: int
    spans: int
    quarantined: int
    error_rate: float | None
    p95_duration_ms: float | None
    scorers: list[ScorerSummary]


def summarize(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> Summary:
    """The summary of `window`, for the current digests of `scorers`."""
    performance = lake.read(TRACE_PERFORMANCE, window).toPandas()
    durations = performance["duration_ms"].dropna()
    return Summary(
        traces=lake.read(AGENT_TRACES, window).count(),
        spans=int(performance["span_count"].sum()),
        quarantined=lake.read(QUARANTINED_TRACES, window).count(),
        error_rate=float((performance["status"] == "ERROR").mean()) if len(performance) else None,
        p95_duration_ms=float(durations.quantile(0.95)) if len(durations) else None,
        scorers=[_scorer_summary(lake, scorer, window) for scorer in scorers],
    )


def _scorer_summary(lake: LakeResource, scorer: ConfiguredScorer, window: Window) -> ScorerSummary:
    from pyspark.sql import functions as F

    counted = ("archived", "filtered_out", "unsampled", "scored", "failed", "over_budget", "pending")
    ledger = lake.read(SCORER_COVERAGE, window).where(is_of(scorer)).toPandas()
    value = lake.read(ASSESSMENTS, window).where(is_of(scorer)).agg(F.avg("score").alias("mean")).toPandas()["mean"][0]
    return ScorerSummary(
        scorer=scorer.name,
        digest=scorer.digest,
        mean_score=None if pd.isna(value) else float(value),
        **{name: int(ledger[name].sum()) for name in counted},
    )
