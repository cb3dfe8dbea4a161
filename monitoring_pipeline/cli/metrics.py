"""`monitoring-pipeline metrics`: the pipeline's state for Prometheus and other monitoring systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monitoring_pipeline.cli.common import Config, settings_of
from monitoring_pipeline.errors import MonitoringError


def metrics(
    output: Annotated[
        Path | None, typer.Option(help="Write them to this file, such as one that node_exporter collects.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="Serve them on this address, such as 127.0.0.1:9464, until Ctrl-C.")
    ] = None,
    config: Config = None,
) -> None:
    """Print the pipeline's state as OpenMetrics: lag, traffic, quarantine, scorers, budgets, alerts and runs."""
    if output and listen:
        raise typer.BadParameter("give one of --output and --listen", param_hint="--output/--listen")
    address = _address(listen) if listen else None
    settings = settings_of(config)
    from datetime import UTC, datetime

    from monitoring_pipeline.metrics.exposition import Metrics
    from monitoring_pipeline.metrics.lake import lake_metrics
    from monitoring_pipeline.metrics.runs import run_metrics
    from monitoring_pipeline.orchestration.runs import start_instance
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.registry import load_scorers
    from monitoring_pipeline.settings import config_folder

    lake, names = build_resources(settings)["lake"], settings.dagster.names
    scorers = load_scorers(settings.scorers)
    instance = start_instance(config_folder(), names, lake)

    def gather() -> list:
        now = datetime.now(UTC)
        return [*lake_metrics(lake, scorers, now), *run_metrics(instance, names, now)]

    found = Metrics(gather)
    if address:
        _, thread = found.listen(*address)
        typer.echo(f"serving metrics on http://{listen}/metrics")
        thread.join()
    elif output:
        _replace(output, found.text())
    else:
        typer.echo(found.text(), nl=False)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter(
            f"{text}: must be an address and a port, such as 127.0.0.1:9464", param_hint="--listen"
        )
    return host.strip("[]"), int(port)


def _replace(file: Path, text: str) -> None:
    """Write the file in one step: a reader never sees half of it."""
    written = file.with_name(f".{file.name}.new")
    try:
        written.write_text(text, encoding="utf-8")
        written.replace(file)
    except OSError as error:
        raise MonitoringError(f"--output {file}: {error.strerror}") from None
