"""The task of a Databricks job: runs the asset on an ephemeral Dagster instance and reports to the calling Dagster."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from dagster_pipes import (
    PipesCliArgsParamsLoader,
    PipesContext,
    PipesUnityCatalogVolumesContextLoader,
    PipesUnityCatalogVolumesMessageWriter,
    open_dagster_pipes,
)

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.settings import Settings, without_password

if TYPE_CHECKING:
    from monitoring_pipeline.compat.dagster import EventLogEntry


def main() -> None:
    """Run the asset that the Pipes parameters on the command line name; the entry point of the job's task."""
    parameters = PipesCliArgsParamsLoader()
    if not parameters.is_dagster_pipes_process():
        sys.exit("only Dagster can start this, as a Databricks job: set [databricks] jobs")
    with open_dagster_pipes(
        params_loader=parameters,
        context_loader=PipesUnityCatalogVolumesContextLoader(),
        message_writer=PipesUnityCatalogVolumesMessageWriter(),
    ) as pipes:
        try:
            run_asset(pipes)
        except Exception as error:
            reason = str(error) if isinstance(error, MonitoringError) else f"{type(error).__name__}: {error}"
            pipes.report_custom_message({"failure": " ".join(without_password(reason).split())})
            raise


def run_asset(pipes: PipesContext) -> None:
    """Run the asset for its range of partitions, and report the materialisations and the results of the checks.

    Raises:
        MonitoringError: an address is missing, the code differs from the calling Dagster's, or the asset failed.
    """
    # Imported here, so that a missing package is reported to Dagster.
    import dagster as dg

    from monitoring_pipeline.keys import ASSETS, RANGE_END, RANGE_START
    from monitoring_pipeline.orchestration.build import build_definitions
    from monitoring_pipeline.orchestration.runs import failures

    definitions = build_definitions(_settings(pipes.get_extra("settings")))
    key = dg.AssetKey.from_escaped_user_string(pipes.asset_key)
    first, last = pipes.get_extra("partitions")
    _check_version(definitions, key, pipes.code_version)
    # The run may be of another code location's job; Dagster's job over all assets runs the asset as well.
    is_ours = definitions.get_repository_def().has_job(pipes.job_name or "")
    job = definitions.resolve_job_def(pipes.job_name or "") if is_ours else definitions.resolve_job_def(ASSETS)

    def forward(entry: EventLogEntry) -> None:
        if entry.step_key and not entry.is_dagster_event:
            pipes.log.log(entry.level if isinstance(entry.level, int) else logging.INFO, entry.user_message)

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_event_listener(pipes.run_id, forward)
        result = job.execute_in_process(
            run_id=pipes.run_id,  # results carry the id of the calling run
            instance=instance,
            asset_selection=[key],
            tags={**pipes.get_extra("tags"), RANGE_START: first, RANGE_END: last},
            run_config=_run_config(definitions, key, pipes.get_extra("config")),
            raise_on_error=False,
        )
    if not result.success:
        raise MonitoringError("; ".join(failures(result).values()) or "the asset could not be started")
    for event in result.get_asset_materialization_events():
        pipes.report_custom_message({"materialization": dg.serialize_value(event.materialization)})
    for check in result.get_asset_check_evaluations():
        pipes.report_custom_message({"check": dg.serialize_value(check)})


def _settings(handed: dict[str, Any]) -> Settings:
    """The settings that Dagster passed, with missing addresses taken from the environment."""
    for section, key in (("mlflow", "tracking_uri"), ("archive", "location")):
        variable = f"MONITORING_{section}__{key}".upper()
        if key not in handed[section] and variable not in os.environ:
            raise MonitoringError(
                f"[{section}] {key} holds a password, which is not passed to a job; set {variable} in its cluster's "
                "spark_env_vars ([databricks] new_cluster), as a reference to a secret"
            )
    return Settings.model_validate(handed)


def _check_version(definitions: Any, key: Any, wanted: str | None) -> None:
    here = definitions.resolve_asset_graph().get(key).code_version
    if here != wanted:
        raise MonitoringError(
            f"{key.to_user_string()} is {wanted} where Dagster runs and {here} in the job; install the same packages "
            "in both ([databricks] packages)"
        )


def _run_config(definitions: Any, key: Any, config: dict[str, Any] | None) -> dict[str, Any]:
    """The run configuration: the asset's, if it takes any, and a log level that omits the line per partition."""
    step = definitions.resolve_asset_graph().assets_def_for_key(key).op.name
    return {
        "ops": {step: {"config": config}} if config else {},
        "loggers": {"console": {"config": {"log_level": "INFO"}}},
    }
