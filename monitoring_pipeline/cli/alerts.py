"""`monitoring-pipeline alerts`: check the rules now, and test a notifier."""

from __future__ import annotations

from typing import Annotated

import typer

from monitoring_pipeline.cli.common import Config, settings_of
from monitoring_pipeline.errors import MonitoringError

app = typer.Typer(no_args_is_help=True, help="Check alert rules and test notifiers.")


@app.command()
def check(config: Config = None) -> None:
    """Evaluate all rules now, send the messages that are due, and print the findings."""
    settings = settings_of(config)
    if not settings.alerts:
        raise MonitoringError("no alert rules; add [[alerts]] to monitoring.toml")
    import logging
    from datetime import UTC, datetime

    from monitoring_pipeline.alerts.checking import check_alerts
    from monitoring_pipeline.cli.console import show_alerts
    from monitoring_pipeline.orchestration.requested_runs import given_up
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.registry import load_scorers
    from monitoring_pipeline.settings import config_folder

    checked = check_alerts(
        build_resources(settings)["lake"],
        settings,
        {scorer.name: scorer.digest for scorer in load_scorers(settings.scorers)},
        lambda: len(given_up(start_instance(config_folder(), settings.dagster.names), settings.dagster.names)),
        datetime.now(UTC),
        logging.getLogger("monitoring_pipeline.alerts"),
    )
    show_alerts(checked)


@app.command()
def test(
    notifier: Annotated[str, typer.Argument(help="Name of the notifier.", show_default=False)], config: Config = None
) -> None:
    """Send a test message through a notifier."""
    settings = settings_of(config)
    by_name = {entry.name: entry for entry in settings.notifiers}
    if notifier not in by_name:
        configured = ", ".join(by_name) or "none; add [[notifiers]] to monitoring.toml"
        raise MonitoringError(f"{notifier}: no such notifier; configured are {configured}")
    import logging
    from datetime import UTC, datetime

    from monitoring_pipeline.alerts.messages import trial
    from monitoring_pipeline.alerts.notifiers import NotifierError, send

    logging.basicConfig(format="%(message)s")
    log = logging.getLogger("monitoring_pipeline.alerts")
    log.setLevel(logging.INFO)
    try:
        send(by_name[notifier], trial(notifier, datetime.now(UTC)), log)
    except NotifierError as error:
        raise MonitoringError(f"notifier {notifier}: {error}") from None
    typer.echo(f"sent by {notifier}")
