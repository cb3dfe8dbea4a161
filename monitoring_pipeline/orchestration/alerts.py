"""The Dagster asset of alerts, and its own job, which runs every few minutes."""

from datetime import UTC, datetime

import dagster as dg

from monitoring_pipeline.alerts.checking import Checked, check_alerts
from monitoring_pipeline.keys import ALERTS_GROUP, ALERTS_JOB, Names
from monitoring_pipeline.orchestration.assets.common import table_metadata, tags
from monitoring_pipeline.orchestration.jobs import asset_job
from monitoring_pipeline.orchestration.naming import named_asset
from monitoring_pipeline.orchestration.requested_runs import given_up
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.tables import ALERTS

NOTIFIERS_ANSWER = dg.AssetCheckSpec(
    "notifiers_answer",
    asset=ALERTS.name,
    description="Every message that was due was sent. A warning if one was not; it is sent again later.",
)
IN_PROGRESS = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


def alert_definitions(settings: Settings, scorers: list[ConfiguredScorer], running: bool) -> dg.Definitions:
    """The asset `alerts`, its job and its schedule, which is on by default if `running`; empty without rules."""
    if not settings.alerts:
        return dg.Definitions()
    names = settings.dagster.names
    job = asset_job(
        settings.dagster,
        ALERTS_JOB,
        dg.AssetSelection.assets(names.key(ALERTS.name)),
        "Evaluates every rule of [[alerts]] and notifies about changes.",
    )
    return dg.Definitions(
        assets=[named_asset(_alerts(settings, scorers), settings.dagster)],
        jobs=[job],
        schedules=[_schedule(names, settings.notify.every_minutes, running)],
    )


def _alerts(settings: Settings, scorers: list[ConfiguredScorer]) -> dg.AssetsDefinition:
    digests = {scorer.name: scorer.digest for scorer in scorers}

    @dg.multi_asset(
        name="evaluate_alerts",
        specs=[
            dg.AssetSpec(
                ALERTS.name,
                group_name=ALERTS_GROUP,
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
            lake,
            settings,
            digests,
            lambda: len(given_up(context.instance, settings.dagster.names)),
            datetime.now(UTC),
            context.log,
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


def _schedule(names: Names, every_minutes: int, running: bool) -> dg.ScheduleDefinition:
    job = names.definition(ALERTS_JOB)

    @dg.schedule(
        name=names.definition("alerts"),
        cron_schedule="0 * * * *" if every_minutes == 60 else f"*/{every_minutes} * * * *",
        job_name=job,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description="Evaluates the rules of [[alerts]].",
    )
    def alerts(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        # Two concurrent checks would send pending messages twice.
        if context.instance.get_runs_count(dg.RunsFilter(job_name=job, statuses=IN_PROGRESS)):
            return dg.SkipReason("the last check is still running")
        return dg.RunRequest()

    return alerts
