"""The two tiers of tests: `python` needs nothing but Python, `services` starts some other program.

A test belongs to `services` if it uses a fixture that starts a service, directly or through other fixtures or its
parameters, or if it is in a folder where all tests do. Helpers that start a service call `starting`, so that a test
that belongs to the wrong tier fails instead of running slowly.
"""

from __future__ import annotations

import pytest

TIERS = ("python", "services")
FOLDERS = frozenset({"conformance", "deploy", "ui"})
# Each starts a service; a parameter of this name means that the test requests the fixture while it runs.
FIXTURES = frozenset({"chromium", "cluster", "from_server", "postgres", "recorded_server", "server"})

_running_tier: str | None = None


def tier_of(item: pytest.Item) -> str:
    """The tier of a collected test."""
    parameters = getattr(item, "callspec", None)
    values = [value for value in parameters.params.values() if isinstance(value, str)] if parameters else []
    needs_one = not FIXTURES.isdisjoint([*getattr(item, "fixturenames", ()), *values])
    return "services" if needs_one or item.path.parent.name in FOLDERS else "python"


def restrict_to(tier: str | None) -> None:
    """Restrict this run to a tier; None runs both."""
    global _running_tier
    _running_tier = tier


def starting(service: str) -> None:
    """Fail the test in a run restricted to the tier `python`."""
    if _running_tier == "python":
        pytest.fail(
            f"the test starts {service}, but was taken for one that needs only Python;"
            " add its fixture to monitoring_pipeline_tests/services.py"
        )
