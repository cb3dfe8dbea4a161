"""Jobs that materialise no asset and write no table; people or schedules launch them."""

from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from monitoring_pipeline.keys import ASSESS, LATEST_HOUR
from monitoring_pipeline.orchestration.checks import LATEST_HOUR_IS_THERE, latest_hour_is_there
from monitoring_pipeline.orchestration.naming import executor, our_step
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.on_demand import (
    assess_chosen,
    check_thresholds,
    chosen_scorers,
    chosen_traces,
    shortfalls,
)
from monitoring_pipeline.settings import DagsterSettings, Settings
from monitoring_pipeline.settings.hours import whole_hours
from monitoring_pipeline.windows import Window, parse_utc


class AssessConfig(dg.Config):
    """The traces to assess, the scorers, and minimum mean scores."""

    start: str | None = Field(default=None, description="such as 2026-01-01T05:00Z; default: 24 h before the end")
    end: str | None = Field(default=None, description="exclusive; default: now")
    filter: str | None = Field(default=None, description="MLflow trace filter")
    trace_ids: list[str] | None = Field(default=None, description="only these traces")
    scorers: list[str] | None = Field(default=None, description="names of configured scorers; default: all")
    experiment_name: str | None = Field(default=None, description="MLflow experiment to log summary and results to")
    fail_under: dict[str, float] = Field(
        default={}, description="minimum mean score by scorer; the run fails if one is lower"
    )


def latest_hour_job(settings: DagsterSettings) -> dg.JobDefinition:
    """The job that evaluates the check `latest_hour_is_there` without a run of its asset."""

    names = settings.names

    @dg.op(name=names.op("look_at_latest_hour"))
    @our_step(names)
    def look_at_latest_hour(context: dg.OpExecutionContext, lake: LakeResource) -> None:
        result = latest_hour_is_there(lake, datetime.now(UTC))
        evaluation = dg.AssetCheckEvaluation(
            asset_key=names.key(LATEST_HOUR_IS_THERE.asset_key),
            check_name=LATEST_HOUR_IS_THERE.name,
            passed=result.passed,
            severity=result.severity,
            metadata=result.metadata,
        )
        context.instance.report_runless_asset_event(evaluation)
        context.log.log("INFO" if result.passed else "WARNING", f"latest hour: {evaluation.metadata}")

    @dg.job(
        name=names.definition(LATEST_HOUR),
        executor_def=executor(settings),
        description="Checks that the latest full hour has its figures, even when no asset runs.",
    )
    def job() -> None:
        look_at_latest_hour()

    return job


def assess_job(settings: Settings) -> dg.JobDefinition:
    """The job that runs scorers on all of the chosen archived traces; it adds nothing to the ledger."""

    names = settings.dagster.names

    @dg.op(name=names.op("assess"))
    @our_step(names)
    def assess(
        context: dg.OpExecutionContext, config: AssessConfig, tracking: TrackingResource, lake: LakeResource
    ) -> None:
        by_time = config.trace_ids is None or config.start or config.end
        scorers = chosen_scorers(settings.scorers, config.scorers)
        check_thresholds(config.fail_under, scorers)
        assessed = assess_chosen(
            lake,
            tracking,
            scorers,
            chosen_traces(lake, None, config.trace_ids, _window(settings, config) if by_time else None, config.filter),
            config.experiment_name,
        )
        figures = {
            f"{outcome.scorer}/{name}": value
            for outcome in assessed.outcomes
            for name, value in vars(outcome).items()
            if name != "scorer" and value is not None
        }
        context.add_output_metadata({**figures, **({"mlflow_run_id": assessed.run_id} if assessed.run_id else {})})
        if short := shortfalls(assessed.outcomes, config.fail_under):
            raise dg.Failure("; ".join(short), allow_retries=False)

    @dg.job(
        name=names.definition(ASSESS),
        executor_def=executor(settings.dagster),
        description="Runs scorers on all of the chosen archived traces, and fails if a mean score is too low.",
    )
    def job() -> None:
        assess()

    return job


def _window(settings: Settings, config: AssessConfig) -> Window:
    start, end = (parse_utc(text) if text else None for text in (config.start, config.end))
    return whole_hours(settings, start, end)
