"""Checks that everything a run needs is available."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import REASON_CHARACTERS, LakeError, MonitoringError, TrackingError, one_line
from monitoring_pipeline.settings import Settings, without_password
from monitoring_pipeline.windows import to_milliseconds

if TYPE_CHECKING:
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.tracking import TrackingResource

LATELY = timedelta(days=14)
DAY = timedelta(days=1)  # clocks differ, and a day is longer than they do


@dataclass(frozen=True)
class Finding:
    """One line of the checklist."""

    subject: str
    healthy: bool
    detail: str


def examine(settings: Settings, in_detail: bool = False) -> Iterator[Finding]:
    """Yield a finding for scorers, store, engine and lake, and for Databricks if it runs scorers.

    With `in_detail`, that of the store also names traces that no hour of the archive holds, and that of the lake those
    that lately could not be read. The detail of a failed
    check says how to fix it.
    """
    checks: dict[str, Callable[[Settings], str]] = {
        "scorers": _scorers,
        "store": partial(_store, in_detail=in_detail),
        "engine": _engine,
        "lake": partial(_lake, in_detail=in_detail),
    }
    if any(entry.managed for entry in settings.scorers):
        checks["databricks"] = _databricks
    for subject, check in checks.items():
        try:
            yield Finding(subject, True, check(settings))
        except MonitoringError as error:
            yield Finding(subject, False, str(error))


def _scorers(settings: Settings) -> str:
    from monitoring_pipeline.scoring.registry import load_scorers

    scorers = load_scorers(settings.scorers)
    return ", ".join(f"{scorer.name} ({scorer.sample_rate:.0%}, digest {scorer.digest})" for scorer in scorers)


def _store(settings: Settings, in_detail: bool) -> str:
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.resources.servers import check_server
    from monitoring_pipeline.resources.tracking import impatience

    tracking = build_resources(settings)["tracking"]
    if settings.archive.source == "mlflow":
        check_server(tracking)
    with impatience():
        names = tracking.experiment_names()
        of_mlflow = names and settings.archive.location is None
        left_out = _left_out(tracking, [*names], settings) if in_detail and of_mlflow else ""
    store = without_password(settings.mlflow.tracking_uri)
    return f"{store}: experiments {', '.join(sorted(names.values()))}{left_out}"


def _left_out(tracking: TrackingResource, experiment_ids: list[str], settings: Settings) -> str:
    """What is said of traces that no hour of the archive holds; empty if there are none."""
    from monitoring_pipeline.resources.tracking import errors_of

    start = settings.archive.start
    outside = {
        f"timestamp_ms < {to_milliseconds(start)}": f"before {start:%Y-%m-%d %H:%M} ([archive] start)",
        f"timestamp_ms >= {to_milliseconds(datetime.now(UTC) + DAY)}": "in the future",
    }
    said = ""
    for condition, where in outside.items():
        try:
            with errors_of(tracking.tracking_uri):
                found = tracking.client.store.search_traces(experiment_ids, condition, max_results=1)[0]
        except TrackingError as error:  # such as a server that cannot send one of these traces: no reason not to run
            return f"{said}; cannot look for traces dated {where}: {error}"
        said += f"; traces dated {where} are not archived" if found else ""
    return said


def _engine(settings: Settings) -> str:
    from monitoring_pipeline.resources.spark import SparkResource

    session = SparkResource(remote=settings.spark.remote).session
    return f"Spark {session.version}, {settings.spark.remote or 'Sail, inside this process'}"


def _lake(settings: Settings, in_detail: bool) -> str:
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.tables import AGENT_TRACES

    lake = build_resources(settings)["lake"]
    if "://" in lake.location or lake.is_in_catalog:
        found = f"{lake.location}: agent_traces at version {lake.version(AGENT_TRACES)}"
        return found + (_quarantined(lake) if in_detail else "")
    place = Path(lake.location)
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise LakeError(f"cannot write to {place}: {existing}: {error.strerror}; check [lake] location") from error
    if existing != place:
        return f"{place}: will be created, writable"
    return f"{place}: exists, writable{_quarantined(lake) if in_detail else ''}"


def _quarantined(lake: LakeResource) -> str:
    """What is said of the traces that lately could not be read; empty if there are none."""
    from monitoring_pipeline.tables import QUARANTINED_TRACES
    from monitoring_pipeline.windows import HOUR, Window, floor_hour

    now = floor_hour(datetime.now(UTC))
    rows = lake.read_columns(QUARANTINED_TRACES, Window(now - LATELY, now + HOUR), "trace_id", "reason").to_pylist()
    if not rows:
        return ""
    example = min(rows, key=lambda row: row["trace_id"])
    return (
        f"; {len(rows)} traces of the last {LATELY.days} days could not be read, such as {example['trace_id']} "
        f"({one_line(example['reason'])[:REASON_CHARACTERS]}); they are in quarantined_traces, and are tried again"
    )


def _databricks(settings: Settings) -> str:
    from monitoring_pipeline import lifecycle
    from monitoring_pipeline.databricks.agents import require_agents

    require_agents()
    managed = [handle for handle in lifecycle.handles(settings) if handle.managed]
    drifted = [f"{handle.name} ({handle.drift})" for handle in managed if handle.drift]
    differs = f"; different there, run `scorers apply`: {', '.join(drifted)}" if drifted else ""
    return f"runs {', '.join(handle.name for handle in managed)}{differs}"
