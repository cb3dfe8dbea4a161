"""What a backfill of a scorer would do, told before any call is made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlflow.genai.scorers import KnowledgeRetention

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.budgets import ceiling
from monitoring_pipeline.scoring.builtins import RETRIEVAL_JUDGES, TOOL_JUDGES, request_count
from monitoring_pipeline.scoring.coverage import SPENT, trace_states
from monitoring_pipeline.scoring.pending import pending_size, pending_traces
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import Spent
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS
from monitoring_pipeline.windows import Window

SEVERAL_REQUESTS = (*RETRIEVAL_JUDGES, *TOOL_JUDGES, KnowledgeRetention)


@dataclass(frozen=True)
class Forecast:
    """What a run over a window would find and do.

    Traces: `archived`, `eligible` (of the sample, and passing the filter), `scored` and `failed` already (for this
    digest), `to_score`. `at_most` is the ceiling of what that uses, `expected` what it uses at the mean of the
    scorer's earlier results in the window, None without any. `minutes` is the least time that its rate limit allows.
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
    """The forecast of a run of `score_window`, at `sample_rate` in place of the scorer's own if given."""
    from pyspark.sql import functions as F

    run_as = scorer if sample_rate is None else replace(scorer, sample_rate=sample_rate)
    version = lake.version(AGENT_TRACES)
    states = trace_states(lake, run_as, window, version).groupBy("state").count().collect()
    counts = {row["state"]: row["count"] for row in states}
    to_score, at_most = _ceiling(lake, run_as, window, version, retry_failed)
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
        to_score=to_score,
        at_most=at_most,
        expected=Spent(
            round(mean["input_tokens"] * to_score),
            round(mean["output_tokens"] * to_score),
            None if mean["cost_usd"] is None else mean["cost_usd"] * to_score,
        )
        if mean["input_tokens"] is not None
        else None,
        minutes=to_score / per_minute if per_minute else None,
    )


def _ceiling(
    lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int, retry_failed: bool
) -> tuple[int, Spent]:
    """How many traces or sessions are due, and what the scorer uses on them at most."""
    if not isinstance(scorer.scorer, SEVERAL_REQUESTS):
        to_score, prompt_bytes = pending_size(lake, scorer, window, version, retry_failed)
        return to_score, ceiling(scorer, prompt_bytes, to_score)
    to_score, at_most = 0, ceiling(scorer, 0, 0)
    for due in pending_traces(lake, scorer, window, version, retry_failed):
        requests = request_count(scorer.scorer, due.traces)
        to_score, at_most = to_score + 1, at_most + ceiling(scorer, requests * due.prompt_bytes, requests)
    return to_score, at_most
