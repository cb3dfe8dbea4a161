"""A metric: what a monitoring system reads of the pipeline's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Sample = tuple[Mapping[str, str], float]  # labels and value


@dataclass(frozen=True)
class Metric:
    """A gauge with its samples. Units are in the name; times and durations are in seconds."""

    name: str
    description: str
    samples: Sequence[Sample]
