"""A run of the pipeline over a day of sample traffic, Dagster's web interface, and a browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from monitoring_pipeline.demo.traffic import fill
from monitoring_pipeline_tests.servers import free_port, wait_until_up

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
"""
SCORERS = """
[[scorers]]
name = "response_quality"
scorer = "monitoring_pipeline.scoring.scorers:response_quality"

[[scorers]]
name = "tool_errors"
scorer = "monitoring_pipeline.scoring.scorers:tool_errors"

[[scorers]]
name = "stage_latency"
scorer = "monitoring_pipeline.scoring.scorers:stage_latency"
params = { limits_ms = { AGENT = 4000, RETRIEVER = 500, TOOL = 1500 } }
"""


@dataclass(frozen=True)
class MonitoredDay:
    """The results of a run over one whole day in `folder`: lake, reports and the Dagster instance."""

    folder: Path
    day: date

    @property
    def config(self) -> Path:
        return self.folder / "monitoring.toml"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def report(self) -> Path:
        return self.folder / "reports" / f"{self.day}" / "report.html"

    @property
    def environment(self) -> dict[str, str]:
        home = self.folder / "dagster"
        own = {"MONITORING_CONFIG": str(self.config), "DAGSTER_HOME": str(home)}
        return {**os.environ, **own, "PYTHONPATH": str(ROOT)}  # for the tests' own scorers


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of Chromium."""
    path = shutil.which("chromium")
    if path is None:
        reason = "no chromium on the PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def monitor_yesterday(folder: Path, scorers: str, *options: str) -> MonitoredDay:
    """Create sample traffic for yesterday and monitor it with `run`; Dagster plots only the latest partitions.

    A scorer may fail on every trace.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monitored = MonitoredDay(folder, (today - timedelta(days=1)).date())
    fill(monitored.tracking_uri, "support_agent", end=today, hours=24, traces=TRACES)
    configuration = CONFIGURATION.format(tracking_uri=monitored.tracking_uri, day=monitored.day)
    monitored.config.write_text(configuration + scorers, encoding="utf-8")
    (folder / "dagster").mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder / "dagster")
    window = ["--from", f"{monitored.day}T00:00Z", "--to", f"{today.date()}T00:00Z"]
    run = subprocess.run(
        [BIN / "monitoring-pipeline", "run", "--config", monitored.config, *window, *options],
        cwd=folder,
        env=monitored.environment,
        capture_output=True,
        text=True,
    )
    assert monitored.report.is_file(), run.stdout + run.stderr
    return monitored


@contextmanager
def serving(monitored: MonitoredDay, *command: str | Path) -> Iterator[str]:
    """Start a Dagster program that serves the UI on loopback, for the length of a `with` block; returns its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log_file = monitored.folder / "dagster.log"
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            [*command, "--workspace", ROOT / "workspace.yaml", "--host", "127.0.0.1", "--port", str(port)],
            cwd=monitored.folder,
            env=monitored.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until_up(str(command[0]), f"{address}/server_info", server, log_file)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # on a busy machine it waits minutes for its own processes
                server.wait(timeout=20)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(timeout=30)


# Not session-scoped: while Playwright runs, the thread has an event loop, and other tests cannot start their own.
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
    """A page in its own profile, with times in UTC."""
    context = browser.new_context(viewport={"width": 1600, "height": 1100}, timezone_id="UTC", locale="en-US")
    context.set_default_timeout(TIMEOUT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def save_screenshot(page: Page, tmp_path: Path) -> Callable[[str], None]:
    """A function that saves the page as `name`.png in MONITORING_SCREENSHOTS or else in the test's temporary folder."""
    folder = Path(os.environ.get("MONITORING_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return save
