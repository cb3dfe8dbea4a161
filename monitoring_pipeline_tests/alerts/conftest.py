"""What tests of alerts share: a webhook that answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitoring_pipeline.alerts import notifiers
from monitoring_pipeline_tests.alerts.receivers import Hook, hook


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    """The webhook whose address ALERT_HOOK has; notifiers hardly wait between their tries."""
    monkeypatch.setattr(notifiers, "LONGEST_WAIT_S", 0.01)
    with hook() as double:
        monkeypatch.setenv("ALERT_HOOK", double.url)
        yield double
