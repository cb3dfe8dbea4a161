"""Scorer assessments: one asset for each scorer, and the ledger of what was scored."""

from dataclasses import replace

import dagster as dg
from pydantic import Field

from monitoring_pipeline.databricks.managed import is_managed
from monitoring_pipeline.databricks.managed_backfill import take_managed
from monitoring_pipeline.derivations import derive_settled_coverage
from monitoring_pipeline.keys import ARCHIVE_KEY, AUTOMATION_TAGS, WHOLE_CHAIN_TAG, partition_key, scorer_key
from monitoring_pipeline.orchestration.assets.common import plain_number, record_hours, table_asset, utc_index
from monitoring_pipeline.orchestration.checks import (
    LEDGER_ADDS_UP,
    CheckedAsset,
    checked,
    ledger_adds_up,
    scorer_works,
    scorer_works_spec,
    table_checks,
    within_budget,
    within_budget_spec,
)
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.coverage import coverage_by_hour, is_of, results_by_hour
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import CRASHES_IN_A_ROW, ScoreCounts, score_window
from monitoring_pipeline.scoring.states import ScorerLog, effective
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.tables import ASSESSMENTS, SCORER_COVERAGE
from monitoring_pipeline.windows import Window


class ScorerRunConfig(dg.Config):
    """Options of one run of a scorer."""

    retry_failed: bool = Field(default=False, description="score again the traces whose result is an error")
    newest_first: bool = Field(default=False, description="start with the latest hour")
    sample_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the traces to score in this run (0 to 1), instead of the scorer's own",
    )


def assessment_assets(
    hours: dg.TimeWindowPartitionsDefinition,
    scorers: list[ConfiguredScorer],
    max_partitions_per_run: int,
    states_in: str | None,
    source: ArchiveSettings,
) -> list[dg.AssetsDefinition]:
    """An asset for each scorer, and the ledger of all scorers.

    `states_in` is the experiment of the scorers' states; `source` is where traces, and the results of scorers that
    Databricks runs, are archived from.
    """
    assets = [_scorer_asset(hours, scorer, max_partitions_per_run, states_in, source) for scorer in scorers]
    return [*assets, _coverage_asset(hours, scorers, states_in)]


def _scorer_asset(
    hours: dg.TimeWindowPartitionsDefinition,
    scorer: ConfiguredScorer,
    max_partitions_per_run: int,
    states_in: str | None,
    source: ArchiveSettings,
) -> dg.AssetsDefinition:
    key = scorer_key(scorer.name)
    has_budget = scorer.budget != Budget()
    share = f"{scorer.sample_rate:.0%} of the traces" + (f" that match `{scorer.filter}`" if scorer.filter else "")

    @table_asset(
        ASSESSMENTS,
        hours,
        "assessments",
        key=key,
        deps=[ARCHIVE_KEY],
        checks=[scorer_works_spec(key), *([within_budget_spec(key)] if has_budget else [])],
        kinds={"mlflow", "deltalake"},
        code_version=scorer.digest,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run),
        metadata={"scorer_digest": scorer.digest, "sample_rate": scorer.sample_rate},
        description=f"{scorer.scorer.description or scorer.name}, on {share}. A run scores only traces that "
        "this digest has not scored yet; results of earlier digests stay.",
    )
    def scorer_asset(
        context: dg.AssetExecutionContext, config: ScorerRunConfig, tracking: TrackingResource, lake: LakeResource
    ) -> CheckedAsset:
        window, log = run_window(context, lake), ScorerLog(tracking, states_in)
        (current,) = effective([scorer], log)
        if config.sample_rate is not None:
            current = replace(current, sample_rate=config.sample_rate)
        context.log.info(f"sample rate {current.sample_rate:g}, filter {current.filter or 'none'}")
        if is_managed(scorer):
            requested, log_line = not _is_automatic(context), context.log.info
            take_managed(log, lake, current, window, source, context.run_id, requested=requested, on_progress=log_line)
            counts = ScoreCounts()
        else:
            counts = _score(context, config, lake, current, window)
        results = lake.read(ASSESSMENTS, window).where(is_of(scorer))
        figures = utc_index(results_by_hour(results).toPandas(), "trace_hour")
        record_hours(context, window, figures)
        scored, failed = plain_number(figures["scored"].sum()), plain_number(figures["failed"].sum())
        checks = [*table_checks(key, ASSESSMENTS, results), scorer_works(key, results, scored, failed, counts.crashed)]
        yield from checked(context, [*checks, *([within_budget(key, counts.over_budget)] if has_budget else [])])

    return scorer_asset


def _score(
    context: dg.AssetExecutionContext,
    config: ScorerRunConfig,
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
) -> ScoreCounts:
    """Score the window and log the counts; skip it if the scorer is stopped and the run is automatic."""
    if not scorer.active and _is_automatic(context):
        context.log.info("not active: only backfills run it; `scorers start` makes it run automatically again")
        return ScoreCounts()
    counts = score_window(
        lake,
        scorer,
        window,
        context.run_id,
        config.retry_failed,
        config.newest_first,
        on_progress=lambda counts: context.log.info(f"{counts.seen} traces seen"),
    )
    context.log.info(
        f"{window}: {counts.scored} scored, {counts.failed} failed, {counts.not_applicable} not applicable"
    )
    for hour in sorted(counts.elsewhere):  # ledger, quality and reports of these hours have changed as well
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=partition_key(hour)))
    if counts.crashed:
        context.log.error(
            f"stopped: the scorer hung or crashed on {CRASHES_IN_A_ROW} traces in a row; the other traces stay pending"
        )
    if counts.over_budget:
        context.log.warning(f"out of budget ({counts.over_budget}); a later run continues from here")
    return counts


def _is_automatic(context: dg.AssetExecutionContext) -> bool:
    """Whether no person named this scorer for this run: the whole chain runs, or a sensor or schedule started it."""
    return not {WHOLE_CHAIN_TAG, *AUTOMATION_TAGS}.isdisjoint(context.run_tags)


def _coverage_asset(
    hours: dg.TimeWindowPartitionsDefinition, scorers: list[ConfiguredScorer], states_in: str | None
) -> dg.AssetsDefinition:
    upstream = [ARCHIVE_KEY, *(scorer_key(scorer.name) for scorer in scorers)]

    @table_asset(SCORER_COVERAGE, hours, "assessments", deps=upstream, checks=[LEDGER_ADDS_UP])
    def scorer_coverage(
        context: dg.AssetExecutionContext, tracking: TrackingResource, lake: LakeResource
    ) -> CheckedAsset:
        window, log = run_window(context, lake), ScorerLog(tracking, states_in)
        changes = log.read().changes if any(map(is_managed, scorers)) else {}
        problems = derive_settled_coverage(lake, window, effective(scorers, log), changes)
        ledger = lake.read(SCORER_COVERAGE, window)
        record_hours(context, window, utc_index(coverage_by_hour(ledger, scorers).toPandas(), "hour"))
        table = table_checks(context.asset_key, SCORER_COVERAGE, ledger)
        yield from checked(context, [*table, ledger_adds_up(problems)])

    return scorer_coverage
