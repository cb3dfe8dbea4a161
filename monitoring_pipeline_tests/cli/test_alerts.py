"""`monitoring-pipeline alerts` as a user calls it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitoring_pipeline.windows import floor_hour
from monitoring_pipeline_tests.alerts.receivers import hook
from monitoring_pipeline_tests.alerts.test_checking import fill, performance
from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.made_project import MadeProject

RULES = """
[[notifiers]]
name = "hook"
kind = "webhook"
url_env = "ALERT_HOOK"
[[alerts]]
name = "errors"
metric = "error_rate"
threshold = 0.1
window = "2h"
notify = ["hook"]
[[alerts]]
name = "quality"
metric = "pass_rate"
scope = { scorer = "response_quality" }
operator = "<"
threshold = 0.8
"""


@pytest.fixture
def file(made: MadeProject, monkeypatch: pytest.MonkeyPatch, dagster_home: Path) -> Path:
    """The file of a configured project with two rules, with the working folder in it."""
    found = made.configure()
    found.write_text(found.read_text(encoding="utf-8") + RULES, encoding="utf-8")
    monkeypatch.chdir(made.folder)
    return found


@pytest.fixture
def call(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling(monkeypatch, capsys, "alerts")


def test_a_check_prints_every_rule_and_sends_messages(
    call: Call, made: MadeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(made.lake, performance(floor_hour(datetime.now(UTC)), 100, 20))
    with hook() as endpoint:
        monkeypatch.setenv("ALERT_HOOK", endpoint.url)
        done = call("check")
    assert done.code == 0
    states = {row[0]: row[2] for row in done.table()[1:] if row[0]}
    assert states == {"errors": "alert", "quality": "unknown"}
    assert "1 messages sent, 0 pending" in done.out
    assert [payload["rule"] for payload in endpoint.payloads] == ["errors"]


def test_a_notifier_can_be_tested(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with hook() as endpoint:
        monkeypatch.setenv("ALERT_HOOK", endpoint.url)
        assert call("test", "hook").out == "sent by hook\n"
        endpoint.answers = [(404, {})]
        refused = call("test", "hook")
    assert [payload["event"] for payload in endpoint.payloads] == ["test", "test"]
    assert (refused.code, refused.error) == (1, "error: notifier hook: it answered 404")


def test_errors_are_reported_in_one_line(call: Call, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALERT_HOOK", raising=False)
    assert call("test", "pager").error == "error: pager: no such notifier; configured are hook"
    assert call("test", "hook").error == "error: notifier hook: the environment variable ALERT_HOOK is not set"
    file.write_text(file.read_text(encoding="utf-8").replace(RULES, ""), encoding="utf-8")
    done = call("check")
    assert (done.code, done.error) == (1, "error: no alert rules; add [[alerts]] to monitoring.toml")
