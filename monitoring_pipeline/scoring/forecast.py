"""Forecast of a scorer's backfill, made before any call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.budgets import ceiling
from monitoring_pipeline.scoring.coverage import SPENT, trace_states
from monitoring_pipeline.scoring.pending import workload
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import Spent
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS
from monitoring_pipeline.windows import Window


@dataclass(frozen=True)
class Forecast:
    """What a run over a window would find and do.

    Numbers of traces: `archived`, `eligible` (sampled and passing the filter), already `scored` or `failed` (for this
    digest), and `to_score`. `at_most` is the upper bound of the usage; `expected` the usage at the mean of the scorer's
    earlier results in the window, None without any. `minutes` is the shortest duration that the rate limit allows.
    """

    scorer: str
    scorer_digest: str
    archived: int
    eligible: int
    scored: int
    failed: int
    to_score: int
    at_most: Spent
    expected: Spent | None
    minutes: float | None


def forecast(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    sample_rate: float | None = None,
    retry_failed: bool = False,
) -> Forecast:
    """Forecast a run of `score_window`; `sample_rate` overrides the scorer's own."""
    from pyspark.sql import functions as F

    run_as = scorer if sample_rate is None else replace(scorer, sample_rate=sample_rate)
    version = lake.version(AGENT_TRACES)
    states = trace_states(lake, run_as, window, version).groupBy("state").count().collect()
    counts = {row["state"]: row["count"] for row in states}
    work = workload(lake, run_as, window, version, retry_failed)
    earlier = lake.read(ASSESSMENTS, window).where((F.col("scorer") == scorer.name) & F.col("input_tokens").isNotNull())
    mean = earlier.agg(*(F.avg(name).alias(name) for name in SPENT)).collect()[0].asDict()
    per_minute = scorer.limits.requests_per_minute
    return Forecast(
        scorer=scorer.name,
        scorer_digest=scorer.digest,
        archived=sum(counts.values()),
        eligible=sum(counts.get(state, 0) for state in ("scored", "failed", "pending")),
        scored=counts.get("scored", 0),
        failed=counts.get("failed", 0),
        to_score=work.traces,
        at_most=ceiling(run_as, work.prompt_bytes, work.requests),
        expected=None if mean["input_tokens"] is None else _times(mean, work.traces),
        minutes=work.requests / per_minute if per_minute else None,
    )


def _times(mean: dict[str, Any], count: int) -> Spent:
    """The usage of `count` assessments at the mean usage of one; what no earlier result reports is None."""
    input_tokens, output_tokens, cost_usd = (None if mean[name] is None else mean[name] * count for name in SPENT)
    return Spent(_whole(input_tokens), _whole(output_tokens), cost_usd)


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)
