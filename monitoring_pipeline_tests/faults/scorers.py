"""The scorer of the schedules: its result tells which content it has read, and by which version."""

from __future__ import annotations

import re
from typing import Any

from mlflow.entities import Feedback
from mlflow.genai.scorers import scorer

from monitoring_pipeline_tests.faults.truth import DECLINES, FAILS


@scorer
def grade(outputs: Any, version: int = 1) -> Feedback | None:
    """`version` * 1000 + the revision of the answer, with the answer as the rationale."""
    found = re.search(r"answer (\d+), revision (\d+)", str(outputs))
    number, revision = (int(text) for text in found.groups()) if found else (1, 0)
    if number % DECLINES == 0:
        return None
    if number % FAILS == 0:
        raise ValueError(f"version {version}, revision {revision}")
    return Feedback(value=version * 1000 + revision, rationale=str(outputs))
