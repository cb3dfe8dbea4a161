"""Alerts as Dagster runs them: an asset that is checked every few minutes by a job of its own."""

from datetime import UTC, datetime

import dagster as dg

from monitoring_pipeline.alerts.checking import Checked, check_alerts
from monitoring_pipeline.orchestration.assets.common import table_metadata, tags
from monitoring_pipeline.orchestration.requested_runs import given_up
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.tables import ALERTS

GROUP = "alerts"
JOB = "alerts_job"
NOTIFIERS_ANSWER = dg.AssetCheckSpec(
    "notifiers_answer",
    asset=ALERTS.name,
    description="Every message that was due was taken. A warning where one was not; it is tried again.",
)
UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


def alert_definitions(settings: Settings, scorers: list[ConfiguredScorer], running: bool) -> dg.Definitions:
    """The asset `alerts`, its job and its schedule, which starts by itself where `running`; nothing without rules."""
    if not settings.alerts:
        return dg.Definitions()
    job = dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets(ALERTS.name),
        description="Every rule of [[alerts]] looked at, and what changed told.",
    )
    return dg.Definitions(
        assets=[_alerts(settings, scorers)], jobs=[job], schedules=[_schedule(settings.notify.every_minutes, running)]
    )


def _alerts(settings: Settings, scorers: list[ConfiguredScorer]) -> dg.AssetsDefinition:
    digests = {scorer.name: scorer.digest for scorer in scorers}

    @dg.multi_asset(
        name="evaluate_alerts",
        specs=[
            dg.AssetSpec(
                ALERTS.name,
                group_name=GROUP,
                kinds={"deltalake"},
                tags=tags(ALERTS),
                metadata=table_metadata(ALERTS),
                description=ALERTS.description,
            )
        ],
        check_specs=[NOTIFIERS_ANSWER],
    )
    def alerts(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        checked = check_alerts(
            lake, settings, digests, lambda: len(given_up(context.instance)), datetime.now(UTC), context.log
        )
        failures = checked.delivered.failures
        return dg.MaterializeResult(
            metadata={**checked.figures, **_measured(checked), "open_alerts": _listed(checked)},
            check_results=[
                dg.AssetCheckResult(
                    check_name=NOTIFIERS_ANSWER.name,
                    passed=not failures,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={**failures, "failing": len(failures)},
                )
            ],
        )

    return alerts


def _measured(checked: Checked) -> dict[str, float]:
    """The metric of each rule and scope, which Dagster plots."""
    return {
        f"{evaluation.rule.name}/{evaluation.scope}": evaluation.measured
        for evaluation in checked.evaluations
        if evaluation.measured is not None
    }


def _listed(checked: Checked) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "rule": episode.rule,
                    "scope": episode.scope,
                    "severity": episode.severity,
                    "opened_at": episode.opened_at.isoformat(),
                    "detail": episode.detail,
                }
            )
            for episode in checked.open
        ],
        schema=dg.TableSchema([dg.TableColumn(name) for name in ("rule", "scope", "severity", "opened_at", "detail")]),
    )


def _schedule(every_minutes: int, running: bool) -> dg.ScheduleDefinition:
    @dg.schedule(
        name="alerts",
        cron_schedule="0 * * * *" if every_minutes == 60 else f"*/{every_minutes} * * * *",
        job_name=JOB,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description="Looks at the rules of [[alerts]].",
    )
    def alerts(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        # Two checks at a time would send what is pending twice.
        if context.instance.get_runs_count(dg.RunsFilter(job_name=JOB, statuses=UNDER_WAY)):
            return dg.SkipReason("the last check is still under way")
        return dg.RunRequest()

    return alerts
