"""Tasks in Dagster's web interface: backfill a scorer, enable the sensor, find failures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient
from mlflow.tracing.client import TracingClient
from playwright.sync_api import Page, expect

from monitoring_pipeline_tests.sources.stores import Store, trace_id
from monitoring_pipeline_tests.ui.conftest import BIN, SCORERS, MonitoredDay, monitor_yesterday, serving

BROKEN = """
[[scorers]]
name = "broken"
scorer = "monitoring_pipeline_tests.odd_scorers:broken"
"""
SENSOR = "locations/monitoring_pipeline.definitions/sensors/new_traces"
LATE = 1_000_000
PATIENCE_MS = 240_000  # Dagster's daemon checks for backfills every 30 seconds, and starts a process for each run


@pytest.fixture(scope="module")
def monitored(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> MonitoredDay:
    """Yesterday, archived and scored by a scorer that works and one that fails; one trace has arrived since."""
    only = ("--scorer", "response_quality", "--scorer", "broken")
    monitored = monitor_yesterday(tmp_path_factory.mktemp("cockpit"), SCORERS + BROKEN, *only)
    uri = monitored.tracking_uri
    experiment = MlflowClient(uri).get_experiment_by_name("support_agent")
    assert experiment is not None
    store = Store(monitored.folder / "mlflow.db", TracingClient(uri), experiment.experiment_id)
    store.log(LATE, started=datetime(*monitored.day.timetuple()[:3], 9, 30, tzinfo=UTC))
    return monitored


@pytest.fixture(scope="module")
def cockpit(monitored: MonitoredDay) -> Iterator[str]:
    """The address of the web interface, with the daemon, as `make ui` starts it."""
    with serving(monitored, BIN / "dagster", "dev") as address:
        yield address


def test_a_backfill_launched_from_the_dialog_scores_24_hours(
    page: Page, cockpit: str, monitored: MonitoredDay, save_screenshot: Callable[[str], None]
) -> None:
    page.goto(f"{cockpit}/assets/assessments/tool_errors")
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    hours = dialog.get_by_role("textbox").first
    hours.fill(f"[{monitored.day}-00:00...{monitored.day}-23:00]")
    hours.press("Enter")
    expect(dialog.get_by_text("24 partitions")).to_be_visible()
    save_screenshot("backfill-dialog")
    dialog.get_by_role("button", name="Launch backfill").click()
    expect(dialog).to_be_hidden()

    page.goto(f"{cockpit}/runs")
    backfill = page.locator("tr, [class*=Row]").filter(has_text="24 partitions").first
    expect(backfill).to_contain_text("Success", timeout=PATIENCE_MS)
    save_screenshot("backfill")
    with_tools = {
        row["trace_id"]
        for row in lake_table(monitored, "agent_traces").to_pylist()
        if any(span["span_type"] == "TOOL" for span in row["spans"])
    }
    results = lake_table(monitored, "assessments").filter(pc.field("scorer") == "tool_errors")
    # The late trace may be archived before or after.
    assert set(results["trace_id"].to_pylist()) | {trace_id(LATE)} == with_tools | {trace_id(LATE)}


def test_the_enabled_sensor_requests_the_late_hour(
    page: Page, cockpit: str, monitored: MonitoredDay, save_screenshot: Callable[[str], None]
) -> None:
    page.goto(f"{cockpit}/{SENSOR}")
    page.locator("label").filter(has=page.locator("input[type=checkbox]")).click()

    expect(page.get_by_text("1 run requested").first).to_be_visible(timeout=PATIENCE_MS)
    save_screenshot("sensor")
    for _ in range(PATIENCE_MS // 1000):
        if trace_id(LATE) in lake_table(monitored, "agent_traces")["trace_id"].to_pylist():
            return
        page.wait_for_timeout(1000)
    pytest.fail("the late trace was not archived")


def test_a_failing_check_is_red_with_its_reason(
    page: Page, cockpit: str, save_screenshot: Callable[[str], None]
) -> None:
    page.goto(f"{cockpit}/assets/assessments/broken?view=checks")
    page.get_by_text("scorer_works", exact=True).first.click()

    verdict = page.get_by_text("Failed", exact=True).last
    expect(verdict).to_be_visible()
    red, green, blue = map(int, re.findall(r"\d+", verdict.evaluate("e => getComputedStyle(e).color"))[:3])
    assert red > 2 * max(green, blue)
    expect(page.get_by_text("SCORER_ERROR: KeyError: 'no such field: citations'")).to_be_visible()
    save_screenshot("failing-check")


def lake_table(monitored: MonitoredDay, name: str) -> pa.Table:
    return DeltaTable(monitored.folder / "lake" / name).to_pyarrow_table()
