"""The pipeline in Dagster's web interface, and its report, as Chromium shows them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from playwright.sync_api import Page, expect

from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline_tests.ui.conftest import BIN, SCORERS, MonitoredDay, monitor_yesterday, serving

CHARTS = 7  # traces, error rate, latency, cost, and the mean score of each of three scorers
# The heights, in pixels, of a plotted line of 24 points; null while none is drawn. Of what Dagster draws on a plot's
# canvas only the line has a hue; grid, axes and labels are grey. A point is a ring of 3 pixels around its place.
HEIGHTS = """canvas => {
    const {width, height} = canvas;
    const rgba = canvas.getContext('2d').getImageData(0, 0, width, height).data;
    const tops = new Map();
    for (let x = 0; x < width; x++) {
        for (let y = 0; y < height && !tops.has(x); y++) {
            const [red, green, blue, alpha] = rgba.subarray(4 * (y * width + x));
            if (alpha > 200 && Math.max(red, green, blue) - Math.min(red, green, blue) > 80) tops.set(x, y);
        }
    }
    if (tops.size === 0) return null;
    const first = Math.min(...tops.keys()) + 3, last = Math.max(...tops.keys()) - 3;
    return Array.from({length: 24}, (_, hour) => height - tops.get(Math.round(first + (hour * (last - first)) / 23)));
}"""


@pytest.fixture(scope="module")
def monitored(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> MonitoredDay:
    """Yesterday, monitored."""
    return monitor_yesterday(tmp_path_factory.mktemp("monitored"), SCORERS)


@pytest.fixture(scope="module")
def dagster_ui(monitored: MonitoredDay) -> Iterator[str]:
    """The address of a Dagster webserver over the monitored day."""
    with serving(monitored, BIN / "dagster-webserver") as address:
        yield address


def test_lineage_page_draws_every_asset(
    page: Page, dagster_ui: str, monitored: MonitoredDay, save_screenshot: Callable[[str], None]
) -> None:
    graph = build_definitions(load_settings(monitored.config)).resolve_asset_graph()
    names = [key.path[-1] for key in graph.get_all_asset_keys()]
    page.set_viewport_size({"width": 1600, "height": 1600})  # Dagster fits the graph to the width; it is tall
    page.goto(f"{dagster_ui}/asset-groups")
    expect(page.locator("foreignObject.group").first).to_be_visible()
    page.keyboard.press("Alt+e")  # expands all groups

    nodes = page.locator("foreignObject:not(.group)").filter(has_text=re.compile(r"\w"))
    expect(nodes).to_have_count(len(names))
    for name in names:
        expect(nodes.get_by_text(name, exact=True)).to_be_in_viewport(ratio=1)
    save_screenshot("asset-graph")


@pytest.mark.parametrize("figure", ["p95_duration_ms", "error_rate"])
def test_figure_is_plotted_by_hour(
    figure: str, page: Page, dagster_ui: str, monitored: MonitoredDay, save_screenshot: Callable[[str], None]
) -> None:
    values = _hours(monitored)[figure].to_pylist()
    page.goto(f"{dagster_ui}/assets/hourly_performance")
    page.get_by_role("button", name="Plots").click()

    plots = page.locator("div").filter(has=page.locator("canvas"))
    plot = plots.filter(has=page.get_by_text(figure, exact=True)).last.locator("canvas")
    plot.scroll_into_view_if_needed()
    heights = page.wait_for_function(HEIGHTS, arg=plot.element_handle()).json_value()
    save_screenshot(f"plot-{figure}")
    assert np.corrcoef(heights, values)[0, 1] > 0.95


def test_partition_shows_the_figures_of_the_lake(
    page: Page, dagster_ui: str, monitored: MonitoredDay, save_screenshot: Callable[[str], None]
) -> None:
    row = _hours(monitored).slice(14, 1).to_pylist()[0]
    figures = ("trace_count", "error_rate", "p50_duration_ms", "p95_duration_ms", "p99_duration_ms", "cost_usd")
    page.goto(f"{dagster_ui}/assets/hourly_performance?view=partitions&partition={monitored.day}-14:00")

    metadata = page.get_by_role("table").filter(has_text="p95_duration_ms")
    shown = {name: metadata.get_by_role("row").filter(has=page.get_by_text(name, exact=True)) for name in figures}
    numbers = {name: float(cells.get_by_role("cell").nth(1).inner_text()) for name, cells in shown.items()}
    save_screenshot("partition")
    assert numbers == {name: row[name] for name in figures}


def test_daily_report_previews_the_day_with_its_charts(
    page: Page, dagster_ui: str, monitored: MonitoredDay, save_screenshot: Callable[[str], None]
) -> None:
    page.goto(f"{dagster_ui}/assets/daily_report?view=partitions&partition={monitored.day}")
    expect(page.get_by_text(str(monitored.report), exact=True)).to_be_visible()
    page.get_by_text("Show Markdown").click()

    preview = page.get_by_role("dialog")
    charts = preview.locator("img[src^='data:image/png']")
    expect(charts).to_have_count(CHARTS)
    # decode() waits for the image and fails if it is broken
    widths = charts.evaluate_all("charts => Promise.all(charts.map(c => c.decode().then(() => c.naturalWidth)))")
    assert min(widths) > 0
    headline = preview.get_by_role("table").first
    expect(headline.get_by_role("columnheader").first).to_have_text("Traces")
    traces = _table(monitored, "agent_traces").num_rows
    expect(headline.get_by_role("cell").first).to_have_text(f"{traces:,}")
    save_screenshot("daily-report-preview")


def test_ledger_check_is_shown_as_passed(page: Page, dagster_ui: str, save_screenshot: Callable[[str], None]) -> None:
    page.goto(f"{dagster_ui}/assets/scorer_coverage?view=checks")

    expect(page.get_by_text("ledger_adds_up", exact=True).first).to_be_visible()
    result = page.locator("div").filter(has=page.get_by_text("Evaluation result", exact=True)).last
    expect(result).to_contain_text("Passed")
    save_screenshot("ledger-check")


def test_written_report_opens_from_disk_and_requests_nothing_else(
    page: Page, monitored: MonitoredDay, save_screenshot: Callable[[str], None]
) -> None:
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(monitored.report.as_uri(), wait_until="networkidle")
    save_screenshot("report")

    expect(page).to_have_title(f"Daily quality report, {monitored.day}")
    assert [url for url in requests if not url.startswith("data:")] == [monitored.report.as_uri()]
    assert errors == []


def _table(monitored: MonitoredDay, name: str) -> pa.Table:
    return DeltaTable(monitored.folder / "lake" / name).to_pyarrow_table()


def _hours(monitored: MonitoredDay) -> pa.Table:
    """hourly_performance over all trace names: one row per hour, because there is one experiment."""
    return _table(monitored, "hourly_performance").filter(pc.field("trace_name").is_null()).sort_by("hour")
