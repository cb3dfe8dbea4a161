"""Asset checks: what must hold of a table before anything is built on it, and what a person should be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

LEDGER_ADDS_UP = dg.AssetCheckSpec(
    "ledger_adds_up",
    asset="scorer_coverage",
    blocking=True,
    description="Every archived trace is accounted for, and the counts are those of the archive and of assessments. "
    "Quality is not computed from a ledger that fails.",
)


def ledger_adds_up(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> dg.AssetCheckResult:
    """The result of the check `ledger_adds_up` for the window."""
    problems = ledger_problems(lake, scorers, window)
    return dg.AssetCheckResult(
        asset_key="scorer_coverage",
        check_name=LEDGER_ADDS_UP.name,
        passed=not problems,
        metadata={"problems": len(problems), "first_problems": "\n".join(problems[:10]) or "none"},
    )


def scorer_works_spec(key: dg.AssetKey) -> dg.AssetCheckSpec:
    """The check that a scorer does not fail: a warning where some results are errors, an error where all are."""
    return dg.AssetCheckSpec(
        "scorer_works", asset=key, description="No result is an error. A warning where some are, red where all are."
    )


def scorer_works(key: dg.AssetKey, results: DataFrame, scored: int | float, failed: int | float) -> dg.AssetCheckResult:
    """The result of the check `scorer_works`; `results` are the scorer's rows of `assessments` in the window."""
    from pyspark.sql import functions as F

    metadata: dict[str, int | float | str] = {"scored": scored, "failed": failed}
    if failed:
        errors = results.where(F.col("error_code").isNotNull()).groupBy("error_code", "error_message").count()
        first = errors.orderBy(F.desc("count"), "error_message").first()
        metadata["most_frequent_error"] = f"{first['error_code']}: {first['error_message']}" if first else ""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="scorer_works",
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR if failed and not scored else dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )


def within_budget_spec(key: dg.AssetKey) -> dg.AssetCheckSpec:
    """The check that a scorer's budget was enough for the window; a warning where it was not."""
    return dg.AssetCheckSpec(
        "within_budget", asset=key, description="The budget was enough. A warning where a later run has to go on."
    )


def within_budget(key: dg.AssetKey, over_budget: str) -> dg.AssetCheckResult:
    """The result of the check `within_budget`; `over_budget` says what was used up, or is empty."""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="within_budget",
        passed=not over_budget,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"used": over_budget or "not used up"},
    )
