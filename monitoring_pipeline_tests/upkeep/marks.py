"""The text that must disappear, and a scorer that repeats it."""

from __future__ import annotations

from typing import Any

from mlflow.entities import Feedback
from mlflow.genai.scorers import scorer

MARK = "QUAGGA7391"
ANN = "ann-quagga-id"


@scorer
def echo(outputs: Any) -> Feedback:
    """The answer as its own rationale."""
    return Feedback(value="note" in str(outputs), rationale=str(outputs))
