"""The embedded store with its sample traffic."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from monitoring_pipeline.demo.traffic import fill
from monitoring_pipeline.folders import make_private
from monitoring_pipeline.windows import HOUR, Window, floor_hour, from_milliseconds

EXPERIMENT = "support_agent"
HOURS = 48
TRACES = 2000


def filled_store(tracking_uri: str, echo: Callable[[str], None]) -> Window:
    """Fill the SQLite store at `tracking_uri` unless it has traces; returns the whole hours that its traces cover.

    A new store is filled under a temporary name and renamed when complete, so that a partly filled one is never used.
    """
    store = Path(tracking_uri.removeprefix("sqlite:///"))
    if not store.exists():
        partial = store.with_suffix(".partial")
        make_private(partial.parent)
        partial.unlink(missing_ok=True)
        _fill(f"sqlite:///{partial}", echo)
        partial.rename(store)
    elif covered(tracking_uri) is None:
        _fill(tracking_uri, echo)
    window = covered(tracking_uri)
    assert window is not None, "the store was filled above"
    return window


def covered(tracking_uri: str) -> Window | None:
    """The whole hours from the first to the last trace of the store; None if it has no traces."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    times_ms = [
        trace.info.request_time
        for order in ("ASC", "DESC")
        for trace in client.search_traces(
            locations=experiments, max_results=1, order_by=[f"timestamp_ms {order}"], include_spans=False
        )
    ]
    if not times_ms:
        return None
    return Window(floor_hour(from_milliseconds(times_ms[0])), floor_hour(from_milliseconds(times_ms[-1])) + HOUR)


def _fill(tracking_uri: str, echo: Callable[[str], None]) -> None:
    echo(f"Filling {tracking_uri} with {HOURS} hours of traffic of a small support agent")
    written = fill(tracking_uri, EXPERIMENT, end=datetime.now(UTC), hours=HOURS, traces=TRACES)
    echo(f"{written} traces written")
