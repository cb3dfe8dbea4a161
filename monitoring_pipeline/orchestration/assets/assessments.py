"""Scorer assessments: one asset a scorer, and the ledger of what was scored."""

from dataclasses import replace

import dagster as dg
from pydantic import Field

from monitoring_pipeline.databricks.managed import check_managed, is_managed
from monitoring_pipeline.databricks.managed_backfill import backfill_and_archive
from monitoring_pipeline.databricks.managed_results import take_results, update_managed_ledger
from monitoring_pipeline.keys import ARCHIVE_KEY, AUTOMATION_TAGS, WHOLE_CHAIN_TAG, scorer_key
from monitoring_pipeline.orchestration.assets.common import plain_number, record_hours, table_metadata, tags, utc_index
from monitoring_pipeline.orchestration.checks import (
    LEDGER_ADDS_UP,
    CheckedAsset,
    checked,
    ledger_adds_up,
    scorer_works,
    scorer_works_spec,
    table_check_specs,
    table_checks,
    within_budget,
    within_budget_spec,
)
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.coverage import is_of, update_ledger
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import ScoreCounts, score_window
from monitoring_pipeline.scoring.states import ScorerLog, effective
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.tables import ASSESSMENTS, SCORER_COVERAGE
from monitoring_pipeline.windows import Window


class ScorerRunConfig(dg.Config):
    """What may be asked of one run of a scorer."""

    retry_failed: bool = Field(default=False, description="score again the traces whose result is an error")
    newest_first: bool = Field(default=False, description="begin with the latest hour")
    sample_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the traces to score in this run (0 to 1), in place of the scorer's own",
    )


def assessment_assets(
    hours: dg.TimeWindowPartitionsDefinition,
    scorers: list[ConfiguredScorer],
    max_partitions_per_run: int,
    states_in: str | None,
    source: ArchiveSettings,
) -> list[dg.AssetsDefinition]:
    """An asset for each scorer, and the ledger of all of them.

    `states_in` is the experiment of the scorers' states; `source` is where traces are archived from, and with them the
    results of scorers that Databricks runs.
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

    @dg.asset(
        key=key,
        deps=[ARCHIVE_KEY],
        partitions_def=hours,
        group_name="assessments",
        kinds={"mlflow", "deltalake"},
        code_version=scorer.digest,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run),
        tags=tags(ASSESSMENTS),
        metadata={**table_metadata(ASSESSMENTS), "scorer_digest": scorer.digest, "sample_rate": scorer.sample_rate},
        check_specs=[
            *table_check_specs(key, ASSESSMENTS),
            scorer_works_spec(key),
            *([within_budget_spec(key)] if has_budget else []),
        ],
        description=f"{scorer.scorer.description or scorer.name}, on {share}. Only what this digest of the scorer has "
        "not seen is scored; results of earlier digests stay.",
    )
    def scorer_asset(
        context: dg.AssetExecutionContext, config: ScorerRunConfig, tracking: TrackingResource, lake: LakeResource
    ) -> CheckedAsset:
        from pyspark.sql import functions as F

        window = run_window(context, lake)
        (current,) = effective([scorer], ScorerLog(tracking, states_in))
        if config.sample_rate is not None:
            current = replace(current, sample_rate=config.sample_rate)
        context.log.info(f"sample rate {current.sample_rate:g}, filter {current.filter or 'none'}")
        counts = ScoreCounts()
        if is_managed(scorer):
            _have_scored(context, tracking, lake, current, window, states_in, source)
        elif current.active or not _is_automatic(context):
            counts = score_window(
                lake,
                current,
                window,
                context.run_id,
                config.retry_failed,
                config.newest_first,
                on_progress=lambda counts: context.log.info(f"{counts.seen} traces seen"),
            )
        else:
            context.log.info("not active: only a backfill runs it; `scorers start` makes it run by itself again")
        results = lake.read(ASSESSMENTS, window).where(is_of(scorer))
        by_hour = results.groupBy("trace_hour").agg(
            F.count("*").alias("rows"),
            F.sum(F.col("error_code").isNull().cast("int")).alias("scored"),
            F.sum(F.col("error_code").isNotNull().cast("int")).alias("failed"),
            F.avg("score").alias("mean_score"),
        )
        figures = utc_index(by_hour.toPandas(), "trace_hour")
        record_hours(context, window, figures)
        if not is_managed(scorer):
            context.log.info(
                f"{window}: {counts.scored} scored, {counts.failed} failed, {counts.not_applicable} not applicable"
            )
        scored, failed = plain_number(figures["scored"].sum()), plain_number(figures["failed"].sum())
        checks = [*table_checks(key, ASSESSMENTS, results), scorer_works(key, results, scored, failed)]
        if has_budget:
            checks.append(within_budget(key, counts.over_budget))
        if counts.over_budget:
            context.log.warning(f"out of budget ({counts.over_budget}); a later run goes on from here")
        yield from checked(context, checks)

    return scorer_asset


def _have_scored(
    context: dg.AssetExecutionContext,
    tracking: TrackingResource,
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    states_in: str | None,
    source: ArchiveSettings,
) -> None:
    """Take in what Databricks has found by itself; when a person asks, have it score the window first."""
    check_managed(tracking, [scorer])
    backfilled = []
    if not _is_automatic(context):
        backfilled = backfill_and_archive(tracking, lake, scorer, window, source, context.log.info)
    changes = ScorerLog(tracking, states_in).read().changes.get(scorer.name, [])
    taken = take_results(lake, scorer, changes, window, context.run_id)
    update_managed_ledger(lake, scorer, changes, window, backfilled)
    context.log.info(f"{window}: {taken.found} results of Databricks, {taken.written} of them new")


def _is_automatic(context: dg.AssetExecutionContext) -> bool:
    """Whether no person has named this scorer for this run: it is of the whole chain, or of a sensor or schedule."""
    return not {WHOLE_CHAIN_TAG, *AUTOMATION_TAGS}.isdisjoint(context.run_tags)


def _coverage_asset(
    hours: dg.TimeWindowPartitionsDefinition, scorers: list[ConfiguredScorer], states_in: str | None
) -> dg.AssetsDefinition:
    @dg.asset(
        deps=[ARCHIVE_KEY, *(scorer_key(scorer.name) for scorer in scorers)],
        partitions_def=hours,
        group_name="assessments",
        kinds={"spark", "deltalake"},
        code_version="1",
        backfill_policy=dg.BackfillPolicy.single_run(),
        tags=tags(SCORER_COVERAGE),
        metadata=table_metadata(SCORER_COVERAGE),
        check_specs=[*table_check_specs(SCORER_COVERAGE.name, SCORER_COVERAGE), LEDGER_ADDS_UP],
        description=SCORER_COVERAGE.description,
    )
    def scorer_coverage(
        context: dg.AssetExecutionContext, tracking: TrackingResource, lake: LakeResource
    ) -> CheckedAsset:
        from pyspark.sql import functions as F

        window = run_window(context, lake)
        log = ScorerLog(tracking, states_in)
        current = effective(scorers, log)
        managed = [scorer for scorer in current if is_managed(scorer)]
        changes = log.read().changes if managed else {}
        while True:
            version = lake.version(ASSESSMENTS)
            update_ledger(lake, [scorer for scorer in current if scorer not in managed], window)
            for scorer in managed:
                update_managed_ledger(lake, scorer, changes.get(scorer.name, []), window)
            check = ledger_adds_up(lake, scorers, window)
            if check.passed or lake.version(ASSESSMENTS) == version:  # else another run has added results meanwhile
                break
        ledger = lake.read(SCORER_COVERAGE, window)
        by_hour = (
            ledger.where(F.col("scorer_digest").isin(*(scorer.digest for scorer in scorers)))
            .groupBy("hour")
            .agg(
                F.count("*").alias("rows"),
                *(F.sum(name).alias(name) for name in ("eligible", "scored", "failed", "over_budget", "pending")),
            )
        )
        record_hours(context, window, utc_index(by_hour.toPandas(), "hour"))
        yield from checked(context, [*table_checks(context.asset_key, SCORER_COVERAGE, ledger), check])

    return scorer_coverage
