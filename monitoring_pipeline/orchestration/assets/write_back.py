"""Results in MLflow, as feedback on their traces."""

import dagster as dg
import pandas as pd

from monitoring_pipeline.keys import RESULTS_IN_MLFLOW, scorer_key
from monitoring_pipeline.orchestration.assets.common import record_hours, table_asset
from monitoring_pipeline.orchestration.checks import CheckedAsset, checked, table_checks
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.sessions import earlier
from monitoring_pipeline.scoring.write_back import (
    GONE,
    PENDING,
    REFUSED,
    WITHDRAWN,
    WRITTEN,
    WriteBackCounts,
    unsent,
    write_back,
)
from monitoring_pipeline.tables import WRITTEN_BACK
from monitoring_pipeline.windows import Window

RESULTS_SENT = dg.AssetCheckSpec(
    "results_sent",
    asset=RESULTS_IN_MLFLOW,
    description="MLflow has every result. A warning if it failed meanwhile: the next run sends the rest.",
)


def write_back_assets(
    hours: dg.TimeWindowPartitionsDefinition, scorers: list[ConfiguredScorer]
) -> list[dg.AssetsDefinition]:
    """The results of all scorers as feedback in MLflow."""

    @table_asset(
        WRITTEN_BACK,
        hours,
        "assessments",
        key=RESULTS_IN_MLFLOW,
        deps=[scorer_key(scorer.name) for scorer in scorers],
        checks=[RESULTS_SENT],
        kinds={"mlflow", "deltalake"},
        reads="mlflow",
        description="Every result as feedback on its trace in MLflow, once; recorded in `written_back`. Feedback "
        "whose trace has changed and has no value now is removed. A run also sends results of sessions that began "
        "earlier, and what a failing server left pending.",
    )
    def results_in_mlflow(
        context: dg.AssetExecutionContext, tracking: TrackingResource, lake: LakeResource
    ) -> CheckedAsset:
        window = run_window(context, lake)
        counts = write_back(
            lake,
            tracking,
            scorers,
            Window(earlier(window).start, window.end),
            on_progress=lambda counts: context.log.info(f"{counts.written} results written"),
        )
        record_hours(context, window, _figures(lake, scorers, window))
        context.log.info(
            f"{window}: {counts.written} written, {counts.already_there} already there, {counts.gone} of deleted "
            f"traces, {counts.refused} refused, {counts.withdrawn} withdrawn, {counts.pending} pending"
        )
        checks = table_checks(context.asset_key, WRITTEN_BACK, lake.read(WRITTEN_BACK, window))
        yield from checked(context, [*checks, _results_sent(counts)])

    return [results_in_mlflow]


def _results_sent(counts: WriteBackCounts) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=RESULTS_IN_MLFLOW,
        check_name=RESULTS_SENT.name,
        passed=not counts.pending,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"pending": counts.pending, "refused": counts.refused, "reason": counts.reason or "none"},
    )


def _figures(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> pd.DataFrame:
    """How many results of each hour are written, gone, refused, withdrawn (of any digest) and pending."""
    recorded = lake.read_columns(WRITTEN_BACK, window, "trace_hour", "outcome").to_pandas()
    pending = unsent(lake, scorers, window).select(["trace_hour"]).to_pandas().assign(outcome=PENDING)
    both = pd.concat([recorded, pending])
    counts = both.groupby(["trace_hour", "outcome"]).size().unstack(fill_value=0)
    figures = counts.reindex(columns=[WRITTEN, GONE, REFUSED, WITHDRAWN, PENDING], fill_value=0)
    return figures.assign(rows=figures.sum(axis=1) - figures[PENDING])
