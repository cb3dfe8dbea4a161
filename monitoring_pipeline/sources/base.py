"""The protocol of a source of traces.

A source delivers traces in one of two forms: `mlflow` and `mlflow-sql` read them into this process in batches; `delta`
and `otel` return a query that the engine runs on its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeAlias

from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from pyspark.sql import DataFrame

    from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace

AnyTrace: TypeAlias = "Trace | FlatTrace | UnreadableTrace"
Batch: TypeAlias = "Sequence[Trace | FlatTrace | UnreadableTrace]"


@dataclass(frozen=True)
class HourCounts:
    """A source's counts for one hour: traces, traces in progress, assessments; and a `mark`.

    The mark is a text that also changes when the three counts may not, such as the time of the latest change of an
    assessment. It is empty if the source has no cheap one. Its parts are separated by "; ".
    """

    traces: int = 0
    in_progress: int = 0
    assessments: int = 0
    mark: str = ""

    def differ_from(self, recorded: HourCounts) -> bool:
        """Return whether something has changed since `recorded`, whose mark may lack the last parts of this one.

        Earlier versions recorded fewer parts, and their hours must not become due for that.
        """
        known = self.mark == recorded.mark or not recorded.mark or self.mark.startswith(f"{recorded.mark}; ")
        return not known or replace(self, mark="") != replace(recorded, mark="")


NOTHING = HourCounts()


@dataclass(frozen=True)
class TraceFrames:
    """The traces of a window as engine queries.

    `frame_of` returns the traces of a part of the window, one row each, with the columns of `sources.tables.FLATTENED`.
    The query is lazy.
    """

    window: Window
    frame_of: Callable[[Window], DataFrame]


class Source(Protocol):
    """A source of traces, opened by `sources.opening.open_source`. A trace belongs to a window by its start."""

    @property
    def experiment_names(self) -> dict[str, str]:
        """The monitored experiments, id -> name."""
        ...

    def counts(self, window: Window) -> dict[datetime, HourCounts]:
        """Return the counts of each hour that begins in `window` (whole hours), without reading a trace.

        Hours without a trace are left out. Counts match `read`: the same experiments, and the same choice among several
        rows of one trace. The cost grows with the window, not with the history.

        Raises:
            TrackingError: the store or table cannot be read.
        """
        ...

    def read(self, window: Window) -> Iterator[Batch] | TraceFrames:
        """Return all traces that start in `window`, each once, including those in progress.

        Raises:
            TrackingError: the store or table cannot be used; iterating may also raise errors of the client.
        """
        ...

    def moved(self, hours: Mapping[str, datetime]) -> Iterator[Batch]:
        """Return the archived traces (id -> hour in the archive) that the source has in another hour."""
        ...
