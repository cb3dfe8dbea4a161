"""Links into MLflow's own pages."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from monitoring_pipeline.settings import Settings

LONGEST_IDS = 300  # characters of an experiment's and a trace's together; MLflow's have 70 at most


def mlflow_ui(settings: Settings) -> str | None:
    """Where MLflow's pages are: `[reports] mlflow_ui`, else the tracking server where it is one over HTTP.

    Without user, password and query, which a report must not show. None where there are no pages, or none known.
    """
    parts = urlsplit(settings.reports.mlflow_ui or settings.mlflow.tracking_uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{quote(host, safe=':[]')}{quote(parts.path.rstrip('/'), safe='/%')}"


def trace_url(ui: str | None, experiment_id: str | None, trace_id: str) -> str | None:
    """The page of a trace; None without an address or an experiment. Any id gives one address of MLflow's, no other."""
    if ui is None or not experiment_id or len(experiment_id) + len(trace_id) > LONGEST_IDS:
        return None
    # lone surrogates have no UTF-8 of their own
    experiment, trace = (quote(part.encode("utf-8", "replace"), safe="") for part in (experiment_id, trace_id))
    return f"{ui}/#/experiments/{experiment}/traces?selectedEvaluationId={trace}&traceId={trace}"
