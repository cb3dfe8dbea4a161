"""A report computes its figures and draws its charts once for all formats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from monitoring_pipeline.reports import charts, figures, findings, report
from monitoring_pipeline.reports.files import write_report
from monitoring_pipeline.reports.rendering import render_json, render_markdown
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline_tests.reports.frames import incident_day

CHARTS = ("volume_chart", "error_rate_chart", "latency_chart", "cost_chart", "quality_chart")


def test_all_formats_of_a_report_share_figures_and_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(module: object, name: str) -> None:
        function = getattr(module, name)

        def counted(*arguments: object) -> object:
            calls[name] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, counted)

    for name in ("changes", "findings", "scorer_rows", "new_errors"):
        count(figures, name)
    count(findings, "new_groups")
    count(report, "figures")
    for name in CHARTS:
        count(charts, name)
    monkeypatch.setattr(charts, "png", lambda figure: b"")
    count(charts, "png")

    shared = Report(incident_day())
    write_report(shared, tmp_path)
    render_markdown(shared, images=True)
    render_json(shared)

    computed = ("changes", "findings", "scorer_rows", "new_errors", "new_groups", "figures")
    assert {name: calls[name] for name in computed} == dict.fromkeys(computed, 1)
    # two experiments, each with three scorers
    assert {name: calls[name] for name in CHARTS} == dict.fromkeys(CHARTS, 2) | {"quality_chart": 6}
    assert calls["png"] == 4 * 2 + 6
