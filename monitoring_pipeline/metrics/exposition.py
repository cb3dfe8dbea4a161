"""Metrics in the OpenMetrics format, as text or on an address that a monitoring system reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from threading import Lock, Thread
from wsgiref.simple_server import WSGIServer

from monitoring_pipeline import __version__
from monitoring_pipeline.errors import MonitoringError, one_line
from monitoring_pipeline.metrics.base import Metric

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.openmetrics.exposition import generate_latest
except ModuleNotFoundError as error:
    raise MonitoringError(
        "metrics need the package prometheus-client: pip install 'monitoring-pipeline[metrics]'"
    ) from error

log = logging.getLogger(__name__)


class Metrics:
    """The metrics that `gather` returns, gathered anew for each reader, one at a time."""

    def __init__(self, gather: Callable[[], list[Metric]]) -> None:
        self._gather = gather
        self._lock = Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics for prometheus-client; without them, `monitoring_up` is 0 and the log has the reason."""
        up, metrics = 1, list[Metric]()
        with self._lock:
            try:
                metrics = self._gather()
            except Exception as error:  # noqa: BLE001 - the reader learns of any failure, and the address stays
                log.error("no metrics: %s", one_line(error))
                up = 0
        info = [({"version": __version__}, 1.0)]
        for metric in [
            Metric("monitoring_up", "Whether the metrics could be gathered.", [({}, up)]),
            Metric("monitoring_build", "The version of the pipeline.", info),
            *metrics,
        ]:
            family = GaugeMetricFamily(metric.name, metric.description)
            for labels, value in metric.samples:
                family.add_sample(metric.name, dict(labels), value)
            yield family

    def text(self) -> str:
        """The metrics in the OpenMetrics text format, which Prometheus' text format contains."""
        return generate_latest(self._registry).decode()

    def listen(self, host: str, port: int) -> tuple[WSGIServer, Thread]:
        """Serve the metrics on the address until the server is shut down.

        Raises:
            MonitoringError: the address is in use, or not one of this machine.
        """
        try:
            return start_http_server(port, host, self._registry)
        except OSError as error:
            raise MonitoringError(f"--listen {host}:{port}: {error.strerror}; choose another address") from None
