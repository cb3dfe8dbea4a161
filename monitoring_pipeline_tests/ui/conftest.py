"""A finished run of the pipeline over a day of sample traffic, a Dagster webserver that shows it, and a browser."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from monitoring_pipeline.demo.traffic import fill
from monitoring_pipeline_tests.servers import wait_until_up

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TRACES = 300
TIMEOUT_MS = 15_000
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
CONFIGURATION = """
[mlflow]
tracking_uri = "{tracking_uri}"

[lake]
location = "lake"

[archive]
start = "{day}T00:00Z"

[reports]
location = "reports"

[[scorers]]
name = "response_quality"
scorer = "monitoring_pipeline.scoring.scorers:response_quality"

[[scorers]]
name = "tool_errors"
scorer = "monitoring_pipeline.scoring.scorers:tool_errors"

[[scorers]]
name = "stage_latency"
scorer = "monitoring_pipeline.scoring.scorers:stage_latency"
params = {{ limits_ms = {{ AGENT = 4000, RETRIEVER = 500, TOOL = 1500 }} }}
"""


@dataclass(frozen=True)
class MonitoredDay:
    """What a run over one whole day has left in `folder`: lake, reports and the Dagster instance."""

    folder: Path
    day: date

    @property
    def config(self) -> Path:
        return self.folder / "monitoring.toml"

    @property
    def report(self) -> Path:
        return self.folder / "reports" / f"{self.day}" / "report.html"

    @property
    def environment(self) -> dict[str, str]:
        home = self.folder / "dagster"
        return {**os.environ, "MONITORING_CONFIG": str(self.config), "DAGSTER_HOME": str(home)}


@pytest.fixture(scope="module")
def chromium() -> str:
    """Where Chromium is."""
    path = shutil.which("chromium")
    if path is None:
        reason = "no chromium on the PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def monitored(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> MonitoredDay:
    """Yesterday, monitored by the command line; yesterday because Dagster plots the latest partitions only."""
    folder = tmp_path_factory.mktemp("monitored")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monitored = MonitoredDay(folder, (today - timedelta(days=1)).date())
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    fill(tracking_uri, "support_agent", end=today, hours=24, traces=TRACES)
    monitored.config.write_text(CONFIGURATION.format(tracking_uri=tracking_uri, day=monitored.day), encoding="utf-8")
    (folder / "dagster").mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder / "dagster")
    window = ["--from", f"{monitored.day}T00:00Z", "--to", f"{today.date()}T00:00Z"]
    run = subprocess.run(
        [BIN / "monitoring-pipeline", "run", "--config", monitored.config, *window],
        cwd=folder,
        env=monitored.environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return monitored


@pytest.fixture(scope="module")
def dagster_ui(monitored: MonitoredDay) -> Iterator[str]:
    """The address of a Dagster webserver on loopback that shows what was monitored."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log_file = monitored.folder / "webserver.log"
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            [BIN / "dagster-webserver", "-w", ROOT / "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
            cwd=monitored.folder,
            env=monitored.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until_up("dagster-webserver", f"{address}/server_info", server, log_file)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


# Not for the session: while Playwright runs, the thread has an event loop, in which no other test could start its own.
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One headless Chromium."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own profile; times are shown in UTC."""
    context = browser.new_context(viewport={"width": 1600, "height": 1100}, timezone_id="UTC", locale="en-US")
    context.set_default_timeout(TIMEOUT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def save_screenshot(page: Page, tmp_path: Path) -> Callable[[str], None]:
    """Saves the page as `name`.png in the folder MONITORING_SCREENSHOTS, else in the test's temporary folder."""
    folder = Path(os.environ.get("MONITORING_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return save
