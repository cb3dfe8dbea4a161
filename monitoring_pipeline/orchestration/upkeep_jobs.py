"""Jobs that remove data from the lake: retention and deletion on request."""

from typing import Any

import dagster as dg
from pydantic import Field

from monitoring_pipeline.keys import DELETE, UPKEEP
from monitoring_pipeline.orchestration.naming import executor, our_step
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import Settings


class DeleteConfig(dg.Config):
    """Which traces to delete: by their ids, or by the ids of their users."""

    trace_ids: list[str] = Field(default=[], description="ids of traces")
    user_ids: list[str] = Field(default=[], description="ids of users whose traces are all deleted")
    reference: str | None = Field(
        default=None, description="name of the request in another system; stored with the deletion"
    )
    source: bool = Field(default=False, description="also delete the traces in MLflow, where they were archived from")
    dry_run: bool = Field(default=False, description="only count the traces")


def upkeep_jobs(settings: Settings) -> list[dg.JobDefinition]:
    """The job that maintains all tables, and the job that deletes traces on request."""

    names, run_by = settings.dagster.names, executor(settings.dagster)

    @dg.op(name=names.op("upkeep"))
    @our_step(names)
    def upkeep(context: dg.OpExecutionContext, tracking: TrackingResource, lake: LakeResource) -> None:
        from monitoring_pipeline.upkeep.deletion import finish
        from monitoring_pipeline.upkeep.maintenance import keep_up
        from monitoring_pipeline.upkeep.recount import Recount

        def recount() -> Recount:
            return Recount.of(settings, lake, tracking)

        finish(lake, recount, context.instance, names, context.run_id, context.log.info)
        done = keep_up(lake, settings.upkeep, names, context.instance, context.run_id, context.log.info)
        figures: dict[str, Any] = {f"{name}/rows_removed": rows for name, rows in done.expired.items()}
        for name, files in done.files.items():
            figures |= {f"{name}/{what}": count for what, count in files.items()}
        context.add_output_metadata({**figures, **({"put_off": done.put_off} if done.put_off else {})})

    @dg.op(name=names.op("delete_traces"))
    @our_step(names)
    def delete_traces(
        context: dg.OpExecutionContext, config: DeleteConfig, tracking: TrackingResource, lake: LakeResource
    ) -> None:
        from monitoring_pipeline.upkeep.deletion import delete, find
        from monitoring_pipeline.upkeep.recount import Recount

        if config.dry_run:
            found = find(lake, config.trace_ids, config.user_ids)
            context.add_output_metadata({"traces": len({trace_id for trace_id, _ in found})})
            return
        deletion = delete(
            lake,
            Recount.of(settings, lake, tracking),
            context.instance,
            context.run_id,
            config.trace_ids,
            config.user_ids,
            config.reference,
            context.log.info,
            config.source,
        )
        rows = {f"{name}/rows_removed": count for name, count in deletion.rows.items()}
        written: dict[str, Any] = {
            "reports": len(deletion.reports),
            "datasets": len(deletion.datasets),
            "dagster_records": deletion.records,
            "records_in_mlflow": deletion.in_mlflow,
            "searched": deletion.searched,
        }
        if deletion.at_source is not None:
            written["deleted_in_mlflow"] = deletion.at_source
        context.add_output_metadata({"traces": deletion.traces, **written, **rows})

    @dg.job(
        name=names.definition(UPKEEP),
        executor_def=run_by,
        description="Removes expired rows, compacts the tables and removes old files.",
    )
    def upkeep_job() -> None:
        upkeep()

    @dg.job(
        name=names.definition(DELETE),
        executor_def=run_by,
        description="Deletes everything the lake has of given traces or users, and verifies that it is gone.",
    )
    def delete_job() -> None:
        delete_traces()

    return [upkeep_job, delete_job]
