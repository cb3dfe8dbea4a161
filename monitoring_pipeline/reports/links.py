"""Links to pages of MLflow's UI."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from monitoring_pipeline.settings import Settings

LONGEST_IDS = 300  # characters of the experiment id and trace id together; MLflow's have at most 70


def mlflow_ui(settings: Settings) -> str | None:
    """The address of MLflow's UI: `[reports] mlflow_ui`, else the tracking server if it is an HTTP server.

    Without user, password and query, which a report must not show. None without a known UI.
    """
    parts = urlsplit(settings.reports.mlflow_ui or settings.mlflow.tracking_uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{quote(host, safe=':[]')}{quote(parts.path.rstrip('/'), safe='/%')}"


def trace_url(ui: str | None, experiment_id: str | None, trace_id: str) -> str | None:
    """The page of a trace; None without a UI or an experiment. No id can lead to an address outside the UI."""
    if ui is None or not experiment_id or len(experiment_id) + len(trace_id) > LONGEST_IDS:
        return None
    # lone surrogates cannot be encoded as UTF-8
    experiment, trace = (quote(part.encode("utf-8", "replace"), safe="") for part in (experiment_id, trace_id))
    return f"{ui}/#/experiments/{experiment}/traces?selectedEvaluationId={trace}&traceId={trace}"
