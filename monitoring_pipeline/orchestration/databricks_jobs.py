"""Assets that run as Databricks jobs: Dagster submits the job, waits for it, and records what it reports."""

import dataclasses
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from monitoring_pipeline.compat.dagster import capture_interrupts, check_captured_interrupt
from monitoring_pipeline.databricks.workspace import REASON_CHARACTERS, connect, is_passing, refusal
from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.keys import AUTOMATION_TAGS, WHOLE_CHAIN_TAG
from monitoring_pipeline.orchestration.naming import config_fields
from monitoring_pipeline.settings import DatabricksSettings, Settings, in_catalog, without_password

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.jobs import Run, SubmitTask

PACKAGE, ENTRY_POINT = "monitoring_pipeline", "databricks-task"
TASK = "asset"
ENVIRONMENT_VERSION = "4"  # of serverless compute: Python 3.12, and a client of Spark 4
POLL_SECONDS = 5.0
# The task writes messages every ten seconds; Dagster must read them at least as often.
READ_SECONDS = 3.0
KEPT_TAGS = {WHOLE_CHAIN_TAG, *AUTOMATION_TAGS}  # tags of the run that the asset reads in the job


@dataclass(frozen=True)
class Reported:
    """The report of a job: a materialisation for each partition, and the results of the checks."""

    materializations: list[dg.AssetMaterialization]
    checks: list[dg.AssetCheckEvaluation]


def on_databricks(asset: dg.AssetsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """The same asset (key, partitions, checks, configuration), run as a Databricks job.

    Raises:
        SettingsError: the lake is in a folder of this machine, which Databricks jobs cannot read.
    """
    (spec,) = asset.specs
    handed = handed_over(settings)

    @dg.multi_asset(
        name=asset.op.name,
        specs=[spec],
        check_specs=[*asset.check_specs],
        partitions_def=asset.partitions_def,
        backfill_policy=asset.backfill_policy,
        config_schema=config_fields(asset),
    )
    def launched(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        extras = {
            "settings": handed,
            # Pipes itself passes on the partition only if there is a single one.
            "partitions": [context.partition_key_range.start, context.partition_key_range.end],
            "config": context.op_execution_context.op_config,
            "tags": {name: value for name, value in context.run_tags.items() if name in KEPT_TAGS},
        }
        reported = _run_job(context, settings.databricks, extras)
        for materialization in reported.materializations:
            context.add_asset_metadata(
                materialization.metadata, asset_key=context.asset_key, partition_key=materialization.partition
            )
        return dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    asset_key=check.asset_key,
                    check_name=check.check_name,
                    passed=check.passed,
                    severity=check.severity,
                    metadata=check.metadata,
                    description=check.description,
                )
                for check in reported.checks
            ]
        )

    return launched


def handed_over(settings: Settings) -> dict[str, Any]:
    """The part of `settings` that a job receives, as JSON: all sections except Databricks and Spark.

    Addresses that hold a password are left out; the job takes them from its own environment.

    Raises:
        SettingsError: the lake is in a folder of this machine, which Databricks jobs cannot read.
    """
    location = settings.lake.location
    if not ("://" in location or in_catalog(location) or location.startswith("/Volumes/")):
        raise SettingsError(
            [
                f"lake.location = {location!r}: Databricks jobs cannot read a folder of this machine; set it to "
                "catalog.schema or an object store address"
            ]
        )
    # Set explicitly, so that the job's environment cannot override them.
    values: dict[str, Any] = settings.model_dump(mode="json")
    values |= {"databricks": {"jobs": None}, "spark": {"remote": None}}
    if values["mlflow"]["tracking_uri"].startswith("databricks"):
        values["mlflow"]["tracking_uri"] = "databricks"  # the job has no profiles of this machine
    databases = [
        ("mlflow", "tracking_uri"),
        *([("archive", "location")] if settings.archive.location_is_database else []),
    ]
    for section, key in databases:
        address = values[section][key] or ""
        if without_password(address) != address:
            del values[section][key]
    return values


def _run_job(context: dg.AssetExecutionContext, settings: DatabricksSettings, extras: dict[str, Any]) -> Reported:
    """Run the step's asset as a job, and return what it reports once it has succeeded.

    This function submits and polls the job itself, because the clients of dagster-databricks (0.29.27) treat a
    cancelled run as finished, abandon it when a request for its state fails, and may start it twice.

    Raises:
        MonitoringError: the job failed, was cancelled, did not report every partition, or could not be submitted.
        DagsterExecutionInterruptedError: the step was interrupted; the job has been cancelled and has ended.
    """
    from dagster_databricks.pipes import PipesUnityCatalogVolumesContextInjector, PipesUnityCatalogVolumesMessageReader
    from databricks.sdk.errors.base import DatabricksError

    client, volume = connect(), settings.volume or ""
    done = None
    try:
        with dg.open_pipes_session(
            context=context,
            extras=extras,
            context_injector=PipesUnityCatalogVolumesContextInjector(client=client, volume_path=volume),
            message_reader=PipesUnityCatalogVolumesMessageReader(
                interval=READ_SECONDS, client=client, volume_path=volume, include_stdio_in_messages=False
            ),
        ) as session:
            parameters = [part for argument in session.get_bootstrap_cli_arguments().items() for part in argument]
            done = _run_to_its_end(context, client, settings, parameters), session
    except (DatabricksError, TimeoutError) as error:
        if done is None:
            raise refusal(client.config.host, error) from None
        context.log.warning(f"the job's messages stay in {volume}: {refusal(client.config.host, error)}")
    assert done is not None  # the session suppresses no exception
    run, session = done
    return _reported(
        context, client, run, session.get_custom_messages(), session.message_handler.received_closed_message
    )


def _run_to_its_end(
    context: dg.AssetExecutionContext, client: "WorkspaceClient", settings: DatabricksSettings, parameters: list[str]
) -> "Run":
    """Submit the job once and wait until it has ended; on an interruption, cancel it."""
    arguments = {
        "run_name": f"monitoring_pipeline {context.asset_key.to_user_string()}",
        "idempotency_token": uuid.uuid4().hex,
        "tasks": [_task(settings, parameters)],
        **_environments(settings),
    }
    with capture_interrupts():  # an interruption between request and response would leave an unknown job running
        run_id = client.jobs.submit(**arguments).bind()["run_id"]
        interrupted = check_captured_interrupt()
    try:
        if interrupted:
            raise dg.DagsterExecutionInterruptedError
        return _ended(context, client, run_id)
    except BaseException:
        _cancel(context, client, run_id)
        raise


def _task(settings: DatabricksSettings, parameters: list[str]) -> "SubmitTask":
    from databricks.sdk.service.compute import ClusterSpec
    from databricks.sdk.service.jobs import PythonWheelTask, SubmitTask

    task = SubmitTask(task_key=TASK, python_wheel_task=PythonWheelTask(PACKAGE, ENTRY_POINT, parameters=parameters))
    if settings.jobs == "serverless":
        return dataclasses.replace(task, environment_key=TASK)
    if settings.new_cluster is None:
        return dataclasses.replace(
            task, existing_cluster_id=settings.cluster_id, libraries=_libraries(settings.packages)
        )
    # The SDK silently drops fields it does not know.
    unknown = sorted(settings.new_cluster.keys() - {field.name for field in dataclasses.fields(ClusterSpec)})
    if unknown:
        raise MonitoringError(f"databricks.new_cluster: the Jobs API has no {', '.join(unknown)}; check the spelling")
    cluster = ClusterSpec.from_dict(settings.new_cluster)
    return dataclasses.replace(task, new_cluster=cluster, libraries=_libraries(settings.packages))


def _environments(settings: DatabricksSettings) -> dict[str, Any]:
    from databricks.sdk.service.compute import Environment
    from databricks.sdk.service.jobs import JobEnvironment

    if settings.jobs != "serverless":
        return {}
    spec = Environment(dependencies=settings.packages, environment_version=ENVIRONMENT_VERSION)
    return {"environments": [JobEnvironment(environment_key=TASK, spec=spec)]}


def _libraries(packages: list[str]) -> list[Any]:
    from databricks.sdk.service.compute import Library, PythonPyPiLibrary

    return [
        Library(whl=package) if package.endswith(".whl") else Library(pypi=PythonPyPiLibrary(package))
        for package in packages
    ]


def _ended(context: dg.AssetExecutionContext, client: "WorkspaceClient", run_id: int) -> "Run":
    """The run once it has ended; while the workspace does not return its state, the run counts as running."""
    from databricks.sdk.service.jobs import RunLifeCycleState

    last = None
    while True:
        try:
            run = client.jobs.get_run(run_id)
        except Exception as error:
            if not is_passing(error):
                raise
            context.log.warning(f"Databricks run {run_id} did not return its state; retrying")
        else:
            state = run.state.life_cycle_state if run.state else None
            if state and state != last:
                context.log.info(f"Databricks run {run_id}: {state.value}, {run.run_page_url}")
            if state in (RunLifeCycleState.TERMINATED, RunLifeCycleState.SKIPPED, RunLifeCycleState.INTERNAL_ERROR):
                return run
            last = state
        time.sleep(POLL_SECONDS)


def _cancel(context: dg.AssetExecutionContext, client: "WorkspaceClient", run_id: int) -> None:
    """Cancel the run and wait until it has ended."""
    context.log.info(f"Databricks run {run_id} is being cancelled")
    try:
        with capture_interrupts():  # a second interruption must not stop the request
            client.jobs.cancel_run(run_id)
        _ended(context, client, run_id)
    except OSError as error:
        reason = refusal(client.config.host, error)
        context.log.error(f"Databricks run {run_id} may still be running; cancel it in Databricks ({reason})")


def _reported(
    context: dg.AssetExecutionContext, client: "WorkspaceClient", run: "Run", messages: Sequence[Any], closed: bool
) -> Reported:
    """Parse the report of the job.

    Raises:
        MonitoringError: the job did not succeed or did not report everything; the message links to its page.
    """
    from databricks.sdk.service.jobs import RunResultState

    found: dict[str, list[Any]] = {"failure": [], "materialization": [], "check": []}
    for message in messages:
        for kind, value in message.items():
            found[kind].append(value)
    page = f"see {run.run_page_url}"
    result = run.state.result_state if run.state else None
    if result != RunResultState.SUCCESS:
        how = "was cancelled" if result == RunResultState.CANCELED else "failed"
        reason = next(iter(found["failure"]), None) or _reason(client, run)
        raise MonitoringError(f"Databricks run {run.run_id} {how}: {reason[:REASON_CHARACTERS]}; {page}")
    reported = Reported(
        [dg.deserialize_value(event, dg.AssetMaterialization) for event in found["materialization"]],
        [dg.deserialize_value(check, dg.AssetCheckEvaluation) for check in found["check"]],
    )
    missing = sorted(
        {*context.partition_keys} - {event.partition for event in reported.materializations if event.partition}
    )
    if missing or not closed:
        lack = (
            f"without reporting {len(missing)} partitions, {missing[0]} first"
            if missing
            else "before its report was complete"
        )
        raise MonitoringError(f"Databricks run {run.run_id} ended {lack}; {page}, and run this again")
    return reported


def _reason(client: "WorkspaceClient", run: "Run") -> str:
    """Why a run has failed, as Databricks reports it, on one line."""
    try:
        task = next(iter(run.tasks or []), None)
        error = client.jobs.get_run_output(task.run_id).error if task and task.run_id else None
    except OSError:  # fall back on the run's own message
        error = None
    message = run.state.state_message if run.state else None
    return " ".join((error or message or "no reason given").split())
