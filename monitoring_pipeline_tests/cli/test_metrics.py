"""`monitoring-pipeline metrics` as a user calls it; the format is read with prometheus-client's own parser."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from monitoring_pipeline import __version__
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.metrics.base import Metric
from monitoring_pipeline.metrics.exposition import Metrics
from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.made_project import MadeProject

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(
    made: MadeProject, dagster_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    made.configure()
    monkeypatch.chdir(made.folder)
    return calling(monkeypatch, capsys, "metrics")


def values(text: str) -> dict[str, float]:
    """The values of the samples, by name and labels."""
    return {
        sample.name + str(sample.labels or ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_printed_and_written_to_a_file(call: Call, tmp_path: Path) -> None:
    printed = values(call().out)
    assert printed["monitoring_up"] == 1
    assert printed[f"monitoring_build{ {'version': __version__} }"] == 1
    assert printed["monitoring_scorer_traces{'scorer': 'stage_latency', 'state': 'scored'}"] == 0
    file = tmp_path / "metrics.prom"
    file.write_text("earlier")
    assert call("--output", str(file)).out == ""
    assert values(file.read_text()).keys() == printed.keys()
    assert [*tmp_path.glob(".metrics*")] == []


def test_the_dashboard_and_the_page_name_the_metrics_that_exist(call: Call) -> None:
    printed = call().out
    names = {family.name for family in text_string_to_metric_families(printed)}
    used = (ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8")
    documented = (ROOT / "docs" / "observing.md").read_text(encoding="utf-8")
    assert names == {*re.findall(r"`(monitoring_\w+)`", documented)}
    assert {*re.findall(r"monitoring_\w+", used)} <= names
    json.loads(used)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--listen", "9464"], 2, "9464: must be an address and a port, such as 127.0.0.1:9464"),
        (["--listen", "127.0.0.1:99999"], 2, "127.0.0.1:99999: must be an address and a port"),
        (["--listen", "127.0.0.1:1", "--output", "x"], 2, "give one of --output and --listen"),
        (["--listen", "192.0.2.1:9464"], 1, "--listen 192.0.2.1:9464: Cannot assign requested address; choose another"),
        (["--output", "missing/metrics.prom"], 1, "--output missing/metrics.prom: No such file or directory"),
    ],
)
def test_a_wrong_place_is_one_line(arguments: list[str], code: int, message: str, call: Call) -> None:
    done = call(*arguments)
    assert done.code == code
    assert message in done.error


def test_each_reader_gets_new_values_and_learns_of_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    results = iter([1.0, 2.0])

    def gather() -> list[Metric]:
        try:
            return [Metric("reads", "Reads <so> far.\n", [({"name": 'a"b\\c\n'}, next(results))])]
        except StopIteration:
            raise MonitoringError("the lake is gone") from None

    server, thread = Metrics(gather).listen("127.0.0.1", 0)
    try:
        address = f"http://127.0.0.1:{server.server_port}/metrics"

        def read() -> dict[str, float]:
            request = urllib.request.Request(address, headers={"Accept": "application/openmetrics-text"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
                return values(answer.read().decode())

        label = str({"name": 'a"b\\c\n'})
        assert [read()[f"reads{label}"] for _ in range(2)] == [1, 2]
        last = read()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert last["monitoring_up"] == 0
    assert not any(name.startswith("reads") for name in last)
    assert "no metrics: the lake is gone" in caplog.text
