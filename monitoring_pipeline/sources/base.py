"""What the archive needs of a source of traces.

A source hands traces over in one of two forms. `mlflow` and `mlflow-sql` read them into this process, batch by batch;
`delta` and `otel` describe a query, which the engine runs on its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeAlias

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from pyspark.sql import DataFrame

    from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace

AnyTrace: TypeAlias = "Trace | FlatTrace | UnreadableTrace"
Batch: TypeAlias = "Sequence[Trace | FlatTrace | UnreadableTrace]"


@dataclass(frozen=True)
class HourCounts:
    """What a source has of an hour: traces, how many of them are in progress, assessments, and a `mark`.

    The mark is a text that differs after a change that may leave the three counts the same, such as the time of the
    latest change of an assessment. It is empty where the source has no cheap one.
    """

    traces: int = 0
    in_progress: int = 0
    assessments: int = 0
    mark: str = ""


NOTHING = HourCounts()


class UncountableError(TrackingError):
    """The store cannot count its traces: its MLflow is too old, or leaves that out."""


@dataclass(frozen=True)
class TraceFrames:
    """The traces of a window as queries of the engine.

    `frame_of` returns those of a part of the window, a row each, with the columns of `sources.tables.FLATTENED`. The
    engine computes the rows when they are used.
    """

    window: Window
    frame_of: Callable[[Window], DataFrame]


class Source(Protocol):
    """A source of traces, as `sources.opening.open_source` opens it. All windows are by the start of a trace."""

    @property
    def experiment_names(self) -> dict[str, str]:
        """The monitored experiments, id -> name."""
        ...

    def counts(self, window: Window) -> dict[datetime, HourCounts]:
        """What the source has of each hour that begins in `window` (whole hours), without reading a trace.

        Hours without a trace are left out. A source counts as it reads: the same experiments, and the same choice
        among several rows of one trace. The cost grows with the window, not with the history.

        Raises:
            UncountableError: the MLflow server cannot count.
            TrackingError: the store or table cannot be read.
        """
        ...

    def read(self, window: Window) -> Iterator[Batch] | TraceFrames:
        """All traces that start in `window`, each once, also those in progress.

        Raises:
            TrackingError: the store or table cannot be used; batches may raise the client's own errors as well.
        """
        ...

    def moved(self, hours: Mapping[str, datetime]) -> Iterator[Batch]:
        """Those of the archived traces (id -> hour in the archive) that the source has in another hour."""
        ...
