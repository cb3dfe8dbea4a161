"""The full description of a dataset, sufficient to rebuild it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, model_validator

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.settings.datasets import Choice
from monitoring_pipeline.settings.problems import wrong_value
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from monitoring_pipeline.scoring.registry import ConfiguredScorer

DEFAULTS: dict[str, dict[str, Any]] = {"regression": {"threshold": 0.5}, "diverse": {"sample_size": 50, "seed": 0}}


class Query(Choice):
    """A choice of traces in [start, end) (UTC; None: the whole archive), with the scorer's configuration at that time.

    With `run_id`, only the feedback of that MLflow run counts. `scorer_digest` and `pass_if` come from the configured
    scorer and are None if no scorer has the name. `embedded`: the sample is drawn by meaning.
    """

    start: datetime | None = None
    end: datetime | None = None
    experiment_id: str | None = None
    run_id: str | None = None
    scorer_digest: str | None = None
    pass_if: str | None = None
    embedded: bool = False

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in values.items() if value is not None}
        return {**DEFAULTS.get(given.get("kind", ""), {}), **given}

    @property
    def window(self) -> Window | None:
        """The window of the traces; None for the whole archive."""
        return Window(self.start, self.end) if self.start and self.end else None


def query_of(window: Window | None, scorers: Sequence[ConfiguredScorer], **choice: Any) -> Query:
    """Return the query for traces in `window`, with the digest and `pass_if` of its scorer, if configured.

    Raises:
        MonitoringError: with one line per invalid parameter.
    """
    scorer = next((scorer for scorer in scorers if scorer.name == choice.get("scorer")), None)
    configured = {"scorer_digest": scorer.digest, "pass_if": scorer.pass_if} if scorer else {}
    times = {"start": window.start, "end": window.end} if window else {}
    try:
        return Query.model_validate({**choice, **times, **configured})
    except ValidationError as error:
        raise MonitoringError("\n".join(map(_line, error.errors()))) from error


def _line(detail: Any) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    return wrong_value(".".join(map(str, detail["loc"])), repr(detail["input"]), detail["msg"])
