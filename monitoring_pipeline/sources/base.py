"""What every source of traces offers."""

from __future__ import annotations

from dataclasses import dataclass

from monitoring_pipeline.errors import TrackingError


@dataclass(frozen=True)
class HourCounts:
    """What a source has of an hour: traces, how many of them are in progress, assessments, and a `mark`.

    The mark is a text that changes where the counts may stay, such as the time of the latest change of an assessment;
    empty where the source has no cheap one.
    """

    traces: int = 0
    in_progress: int = 0
    assessments: int = 0
    mark: str = ""


NOTHING = HourCounts()


class UncountableError(TrackingError):
    """The store has no way to count its traces: an older MLflow, or one that leaves it out."""
