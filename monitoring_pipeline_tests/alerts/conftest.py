"""Fixtures of alert tests: a webhook."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitoring_pipeline.alerts import notifiers
from monitoring_pipeline_tests.alerts.receivers import Hook, hook


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    """The webhook at the address in ALERT_HOOK; notifiers barely wait between attempts."""
    monkeypatch.setattr(notifiers, "LONGEST_WAIT_S", 0.01)
    with hook() as double:
        monkeypatch.setenv("ALERT_HOOK", double.url)
        yield double
