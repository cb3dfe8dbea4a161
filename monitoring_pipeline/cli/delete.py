"""`monitoring-pipeline delete`: delete all data about given traces or users."""

from __future__ import annotations

from typing import Annotated

import typer

from monitoring_pipeline.cli.common import Config, settings_of


def delete(
    trace_id: Annotated[list[str] | None, typer.Option(help="Delete this trace; repeatable.")] = None,
    user_id: Annotated[list[str] | None, typer.Option(help="Delete all traces of this user; repeatable.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Reference of the request, such as a ticket number; it is stored, so give no personal data."),
    ] = None,
    source: Annotated[
        bool, typer.Option("--source", help="Also delete the traces in MLflow, where they were archived from.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be deleted, without deleting.")] = False,
    config: Config = None,
) -> None:
    """Permanently delete all data of given traces or users, and search for what is left.

    Deletes from the lake, reports, datasets and Dagster's records; MLflow keeps its traces without --source.
    """
    if not trace_id and not user_id:
        raise typer.BadParameter("give --trace-id or --user-id", param_hint="--trace-id/--user-id")
    settings = settings_of(config)
    from monitoring_pipeline.cli.console import console, show_deletion
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.settings import config_folder
    from monitoring_pipeline.upkeep import deletion
    from monitoring_pipeline.upkeep.recount import Recount

    resources = build_resources(settings)
    lake = resources["lake"]
    if dry_run:
        found = deletion.find(lake, trace_id or [], user_id or [])
        show_deletion("to delete", deletion.preview(lake, found))
        return
    done = deletion.delete(
        lake,
        Recount.of(settings, lake, resources["tracking"]),
        start_instance(config_folder(), settings.dagster.names, lake),
        None,
        trace_id or [],
        user_id or [],
        reference,
        lambda message: console.print(message, soft_wrap=True, highlight=False, markup=False),
        source,
    )
    show_deletion("deleted", done)
