"""Public names do not change by accident: they equal a checked-in listing."""

from __future__ import annotations

import difflib
from pathlib import Path

from monitoring_pipeline_tests.api.public_names import listing

LISTED = Path(__file__).with_name("public_names.txt")


def test_public_names_are_those_listed() -> None:
    """Fails with the difference; a deliberate change belongs into the listing and into CHANGELOG.md."""
    difference = difflib.unified_diff(
        LISTED.read_text(encoding="utf-8").splitlines(),
        listing().splitlines(),
        "listed",
        "in the code",
        n=0,
        lineterm="",
    )
    changed = "\n".join(difference)
    assert not changed, (
        f"public names have changed:\n{changed}\nIf that is meant, note it in CHANGELOG.md and run "
        f"python -m monitoring_pipeline_tests.api.public_names > {LISTED.name}"
    )
