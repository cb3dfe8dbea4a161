from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.reports.links import mlflow_ui, trace_url
from monitoring_pipeline.settings import MlflowSettings, ReportSettings, Settings, load_settings

UI = "https://mlflow.example.org/base"


@pytest.mark.parametrize(
    ("tracking_uri", "address", "ui"),
    [
        ("http://127.0.0.1:5000", None, "http://127.0.0.1:5000"),
        ("https://user:pass@mlflow.example.org/base/?token=secret#x", None, UI),
        ("http://[::1]:5000/", None, "http://[::1]:5000"),
        ("sqlite:///mlflow.db", None, None),
        ("postgresql://user:pass@db/mlflow", None, None),
        ("databricks", None, None),
        ("databricks", "https://ann:pass@mlflow.example.org/base", UI),
        ("http://127.0.0.1:5000", UI, UI),
        ('https://mlflow.example.org/a b"<x>', None, "https://mlflow.example.org/a%20b%22%3Cx%3E"),
    ],
)
def test_links_use_the_http_address_without_credentials(tracking_uri: str, address: str | None, ui: str | None) -> None:
    settings = Settings(mlflow=MlflowSettings(tracking_uri=tracking_uri), reports=ReportSettings(mlflow_ui=address))
    assert mlflow_ui(settings) == ui


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "mlflow.example.org", "http://", "ftp://mlflow.example.org"]
)
def test_an_address_that_is_not_a_page_is_refused(address: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "monitoring.toml"
    file.write_text(f'[reports]\nmlflow_ui = "{address}"\n')
    with pytest.raises(SettingsError, match=r"reports.*mlflow_ui = .*is not an address; write it as"):
        load_settings(file)


def test_a_trace_has_its_page() -> None:
    assert trace_url(UI, "7", "tr-1") == f"{UI}/#/experiments/7/traces?selectedEvaluationId=tr-1&traceId=tr-1"


@pytest.mark.parametrize(("ui", "experiment"), [(None, "7"), (UI, ""), (UI, None), (UI, "7" * 400)])
def test_without_an_address_or_experiment_there_is_no_link(ui: str | None, experiment: str | None) -> None:
    assert trace_url(ui, experiment, "tr-1") is None


@given(st.text(min_size=1, max_size=100), st.text(max_size=100))
def test_any_id_stays_within_its_part_of_the_address(experiment: str, trace: str) -> None:
    url = trace_url(UI, experiment, trace)
    assert url is not None
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "mlflow.example.org", "/base/")
    route, _, query = parts.fragment.partition("?")
    assert len(route.split("/")) == 4
    readable = trace.encode("utf-8", "replace").decode()
    assert parse_qs(query, keep_blank_values=True) == {"selectedEvaluationId": [readable], "traceId": [readable]}
    assert url.isascii()
    assert not set(url) & set(" \"'<>()[]\\`")
