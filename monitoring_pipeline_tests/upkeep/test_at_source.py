"""Which sources `delete --source` can delete from."""

from __future__ import annotations

import pytest

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.upkeep.at_source import check_deletable

HERE = TrackingResource(tracking_uri="postgresql://me:secret@here/mlflow")


@pytest.mark.parametrize(
    ("source", "location", "message"),
    [
        ("delta", "main.traces.archive", "source is 'delta', whose tables other programs write"),
        ("otel", "main.traces.otel", "source is 'otel', whose tables other programs write"),
        ("mlflow-sql", "postgresql://me:secret@there/mlflow", "there/mlflow is not .* tracking_uri .*here/mlflow"),
    ],
)
def test_other_sources_are_refused_with_the_reason(source: str, location: str, message: str) -> None:
    with pytest.raises(MonitoringError, match=message) as refused:
        check_deletable(ArchiveSettings.model_validate({"source": source, "location": location}), HERE)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("source", "location"), [("mlflow", None), ("mlflow-sql", None), ("mlflow-sql", HERE)])
def test_sources_in_the_store_of_the_client_are_accepted(source: str, location: TrackingResource | None) -> None:
    archive = {"source": source, "location": location and location.tracking_uri}
    check_deletable(ArchiveSettings.model_validate(archive), HERE)
