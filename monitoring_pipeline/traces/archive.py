"""Traces from a source into the archive. The archive never shrinks: what the source has since deleted stays."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import FlatTrace, flatten
from monitoring_pipeline.traces.mlflow_source import UnreadableTrace
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace, TraceInfo

# A commit holds at most this much, so that memory stays flat however many or large the traces are.
COMMIT_TRACES = 2000
COMMIT_CHARACTERS = 64 * 2**20
COLLECTION_OBJECTS = 200_000
T = TypeVar("T")


@dataclass
class ArchiveCounts:
    """What one reading of a window did: traces read, rows added or changed, traces put into quarantine."""

    read: int = 0
    written: int = 0
    quarantined: int = 0


def archive(
    lake: LakeResource,
    window: Window,
    batches: Iterable[Sequence[Trace | FlatTrace | UnreadableTrace]],
    experiment_names: dict[str, str],
    on_progress: Callable[[int], None] = lambda read: None,
) -> ArchiveCounts:
    """Merge the traces of `window` into `agent_traces`, and what cannot be flattened into `quarantined_traces`.

    Committed every few thousand traces; running it again continues, and changes nothing that is already there.
    `experiment_names` (id -> name) are kept beside the ids. `on_progress` is told the number of traces read so far.
    """
    counts = ArchiveCounts()
    quarantine: dict[str, dict[str, Any]] = {}
    now = datetime.now(UTC)
    with _rare_collections(), closing(_ahead(_commits(batches, experiment_names, now))) as commits:
        for rows, unreadable in commits:
            counts.written += lake.upsert(AGENT_TRACES, rows)
            quarantine.update({trace.trace_id: _unreadable_row(trace) for trace in unreadable})
            counts.read += rows.num_rows + len(unreadable)
            on_progress(counts.read)
    counts.quarantined = update_quarantine(lake, window, quarantine)
    return counts


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Within the block Python looks for cycles rarely: in rows there are none, and it takes an eighth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECTION_OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _ahead(items: Iterator[T]) -> Generator[T]:
    """The items; while one is used, the next is made in a thread."""
    end = object()
    with ThreadPoolExecutor(1, "archive") as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield cast(T, item)


def _commits(
    batches: Iterable[Sequence[Trace | FlatTrace | UnreadableTrace]], experiment_names: dict[str, str], now: datetime
) -> Iterator[tuple[pa.Table, list[UnreadableTrace]]]:
    """What is committed at once: rows of `agent_traces`, and what cannot become one."""
    for traces, unreadable in _chunks(batches, now):
        for trace in traces:
            trace.row["created_at"] = now
            trace.row["experiment_name"] = experiment_names.get(trace.row["experiment_id"])
        rows, refused = _table(traces)
        yield rows, unreadable + refused


def _chunks(
    batches: Iterable[Sequence[Trace | FlatTrace | UnreadableTrace]], now: datetime
) -> Iterator[tuple[list[FlatTrace], list[UnreadableTrace]]]:
    traces: list[FlatTrace] = []
    unreadable: list[UnreadableTrace] = []
    characters = 0
    for trace in (_flat(trace, now) for batch in batches for trace in batch):
        if isinstance(trace, FlatTrace):
            traces.append(trace)
            characters += len(trace.row["trace_json"])
        else:
            unreadable.append(trace)
        if len(traces) + len(unreadable) >= COMMIT_TRACES or characters >= COMMIT_CHARACTERS:
            yield traces, unreadable
            traces, unreadable, characters = [], [], 0
    if traces or unreadable:
        yield traces, unreadable


def _flat(trace: Trace | FlatTrace | UnreadableTrace, now: datetime) -> FlatTrace | UnreadableTrace:
    if isinstance(trace, FlatTrace | UnreadableTrace):
        return trace
    info = trace.info
    try:
        return FlatTrace(flatten(trace, now), lambda: info)
    except Exception as error:  # noqa: BLE001 - a malformed trace may raise anything, and is kept aside with the reason
        return _unreadable(info, error)


def _table(traces: list[FlatTrace]) -> tuple[pa.Table, list[UnreadableTrace]]:
    """The rows of the traces, and those traces that Arrow refuses (a lone surrogate, a number out of range)."""
    try:
        return from_dicts(AGENT_TRACES, [trace.row for trace in traces]), []
    except Exception as error:  # noqa: BLE001 - one malformed trace fails its chunk, in any way, and is found by halving
        if len(traces) == 1:
            return from_dicts(AGENT_TRACES, []), [_unreadable(traces[0].info(), error)]
    middle = len(traces) // 2
    (first, refused_first), (second, refused_second) = _table(traces[:middle]), _table(traces[middle:])
    return pa.concat_tables([first, second]), refused_first + refused_second


def _unreadable(info: TraceInfo, error: Exception) -> UnreadableTrace:
    started = from_milliseconds(info.request_time)
    return UnreadableTrace(info.trace_id, started, f"{type(error).__name__}: {error}", repr(info))


def _unreadable_row(trace: UnreadableTrace) -> dict[str, Any]:
    return {
        "trace_id": trace.trace_id,
        "trace_hour": floor_hour(trace.started),
        "reason": encodable(trace.reason),
        "raw": encodable(trace.raw),
    }


def encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def update_quarantine(lake: LakeResource, window: Window, found: dict[str, dict[str, Any]]) -> int:
    """Add what was found to the quarantine and take out what is in the archive; returns how many of `found` are in.

    A trace that was archived before it became unreadable stays archived as it was.
    """
    columns = [name for name in QUARANTINED_TRACES.schema.names if name != "date"]
    before = lake.read_columns(QUARANTINED_TRACES, window, *columns).to_pylist()
    if not before and not found:
        return 0
    archived = set(lake.read_columns(AGENT_TRACES, window, "trace_id")["trace_id"].to_pylist())
    known = {row["trace_id"]: row for row in before}
    kept = {trace_id: row for trace_id, row in (known | found).items() if trace_id not in archived}
    if kept != known:
        lake.replace(QUARANTINED_TRACES, window, from_dicts(QUARANTINED_TRACES, list(kept.values())))
    return len(kept.keys() & found.keys())
