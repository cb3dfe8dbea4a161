"""The merge of a window's traces into the archive. Traces that the source has deleted since stay in the archive.

`archive` merges traces that this process reads; `frames.archive_frames` merges traces that the engine reads.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa

from monitoring_pipeline.archive.moving import follow_moved, places_of
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.tombstones import MOVED_AT_MOST, deleted_digests, trace_digest
from monitoring_pipeline.sources.base import AnyTrace, Batch
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace, encodable, flatten
from monitoring_pipeline.traces.redaction import Redactor
from monitoring_pipeline.windows import Window, floor_hour

if TYPE_CHECKING:
    from mlflow.entities import Trace

# Limits the size of a commit, so that memory does not grow with the number or size of traces.
COMMIT_CHARACTERS = 48 * 2**20  # of trace_json; the rows take about 1.75 bytes per character
PIECE = 100  # traces that become rows of Arrow at a time, so that few exist as Python objects
COLLECTION_OBJECTS = 200_000
T = TypeVar("T")


@dataclass
class ArchiveCounts:
    """The result of a merge: numbers of traces read, rows added or changed, traces put into quarantine.

    `deleted` traces were left out because they were deleted on request; `moved` traces were archived under another hour
    before; `redactions` is the number of replacements by detector; `lacking` is the number of the source's traces that
    are still missing, by hour.
    """

    read: int = 0
    written: int = 0
    quarantined: int = 0
    deleted: int = 0
    moved: int = 0
    redactions: Counter[str] = field(default_factory=Counter)
    lacking: dict[datetime, int] = field(default_factory=dict, compare=False)


@dataclass
class WindowMerge:
    """The merge of one window: its lake, its settings, and its progress so far."""

    lake: LakeResource
    window: Window
    experiment_names: dict[str, str]  # id -> name; the archive stores both
    redactor: Redactor | None
    on_progress: Callable[[int], None]
    counts: ArchiveCounts = field(default_factory=ArchiveCounts)
    deleted: frozenset[str] = field(init=False)  # digests of traces deleted on request
    _places: list[pa.Table] = field(init=False)
    _quarantine: dict[str, dict[str, Any]] = field(default_factory=dict)
    _now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.deleted = deleted_digests(self.lake, AGENT_TRACES, self.window)
        self._places = [places_of(AGENT_TRACES.schema.empty_table())]

    def note(self, read: int, places: pa.Table, unreadable: Iterable[dict[str, Any]]) -> None:
        """Record that `read` traces were read: those at `places` are archived, `unreadable` rows go into quarantine."""
        self.counts.read += read
        self._places.append(places)
        self._quarantine.update({row["trace_id"]: row for row in unreadable})
        self.on_progress(self.counts.read)

    def finish(self, read_moved: Callable[[Mapping[str, datetime]], Iterable[Batch]]) -> ArchiveCounts:
        """Update the quarantine, follow the traces that moved to another hour, and return the counts."""
        places = pa.concat_tables(self._places)
        readable = set(places["trace_id"].to_pylist())
        self.counts.quarantined = _update_quarantine(self.lake, self.window, self._quarantine, readable)
        self.counts.moved = follow_moved(
            self.lake,
            self.window,
            places,
            archive_moved=lambda hours: self._archive_moved(read_moved(hours)),
        )
        return self.counts

    def commits(self, batches: Iterable[Batch]) -> Iterator[tuple[pa.Table, list[UnreadableTrace]]]:
        """Yield the traces of the batches, one commit at a time: rows of `agent_traces`, and unreadable traces.

        While one commit is written, a thread reads and flattens the next.
        """
        flat = (_flat(trace, self._now, self.experiment_names, self.redactor) for trace in self._kept(batches))
        with _rare_collections(), closing(_ahead(_commits(flat, self.lake.commit_rows))) as commits:
            yield from commits

    def _archive_moved(self, batches: Iterable[Batch]) -> dict[str, datetime]:
        """Archive the traces under their hours in the source; returns these hours by id."""
        found: dict[str, datetime] = {}
        for rows, _ in self.commits(batches):
            self.lake.upsert(AGENT_TRACES, rows)
            found |= dict(zip(rows["trace_id"].to_pylist(), rows["trace_hour"].to_pylist(), strict=True))
        return found

    def _kept(self, batches: Iterable[Batch]) -> Iterator[AnyTrace]:
        """The traces that were not deleted on request."""
        for trace in (trace for batch in batches for trace in batch):
            if self.deleted and trace_digest(_id(trace)) in self.deleted:
                self.counts.deleted += 1
            else:
                yield trace


def archive(
    lake: LakeResource,
    window: Window,
    batches: Iterable[Batch],
    experiment_names: dict[str, str],
    on_progress: Callable[[int], None] = lambda read: None,
    redactor: Redactor | None = None,
    read_moved: Callable[[Mapping[str, datetime]], Iterable[Batch]] = lambda hours: (),
) -> ArchiveCounts:
    """Merge the traces of `window` into `agent_traces`; traces that cannot be flattened go into `quarantined_traces`.

    Commits every few thousand traces. Idempotent: a rerun resumes and leaves unchanged rows alone.
    `experiment_names` are id -> name. `on_progress` is called with the number of traces read so far. `redactor` redacts
    all traces before they are written. `read_moved` is as `Source.moved`.
    """
    merge = WindowMerge(lake, window, experiment_names, redactor, on_progress)
    for rows, unreadable in merge.commits(batches):
        merge.counts.written += lake.upsert(AGENT_TRACES, rows)
        merge.counts.redactions += redactions(rows)
        quarantine = [_quarantine_row(trace, redactor) for trace in unreadable]
        merge.note(rows.num_rows + len(unreadable), places_of(rows), quarantine)
    return merge.finish(read_moved)


def rows_of(traces: Iterable[Trace]) -> tuple[pa.Table, list[UnreadableTrace]]:
    """Return the traces as rows of `agent_traces` without writing them, and the unreadable traces."""
    now = datetime.now(UTC)
    found = [_flat(trace, now, {}, None) for trace in traces]
    rows, refused = _table([trace for trace in found if isinstance(trace, FlatTrace)])
    return rows, [trace for trace in found if isinstance(trace, UnreadableTrace)] + refused


def redactions(rows: pa.Table) -> Counter[str]:
    """Return the number of replacements by detector in rows of `agent_traces`."""
    return sum((Counter(dict(found)) for found in rows["redactions"].drop_null().to_pylist()), Counter())


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect garbage rarely within the block: collections take an eighth of the time, and rows hold no cycles."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECTION_OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _ahead(items: Iterator[T]) -> Generator[T]:
    """The items; while one is used, a thread computes the next."""
    end = object()
    with ThreadPoolExecutor(1, "archive") as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield cast(T, item)


def _commits(
    traces: Iterable[FlatTrace | UnreadableTrace], commit_rows: int
) -> Iterator[tuple[pa.Table, list[UnreadableTrace]]]:
    """The rows of `agent_traces` of each commit, and its unreadable traces."""
    piece: list[FlatTrace] = []
    rows: list[pa.Table] = []
    unreadable: list[UnreadableTrace] = []
    read = characters = 0
    for trace in traces:
        read += 1
        if isinstance(trace, FlatTrace):
            piece.append(trace)
            characters += len(trace.row["trace_json"])
        else:
            unreadable.append(trace)
        is_full = read >= commit_rows or characters >= COMMIT_CHARACTERS
        if is_full or len(piece) >= PIECE:
            _move(piece, rows, unreadable)
        if is_full:
            yield pa.concat_tables(rows), unreadable
            rows, unreadable, read, characters = [], [], 0, 0
    if read:
        _move(piece, rows, unreadable)
        yield pa.concat_tables(rows), unreadable


def _move(piece: list[FlatTrace], rows: list[pa.Table], unreadable: list[UnreadableTrace]) -> None:
    """Move the traces of `piece` to `rows`, and those that Arrow rejects to `unreadable`."""
    table, refused = _table(piece)
    rows.append(table)
    unreadable += refused
    piece.clear()


def _flat(
    trace: AnyTrace, now: datetime, names: dict[str, str], redactor: Redactor | None
) -> FlatTrace | UnreadableTrace:
    if isinstance(trace, UnreadableTrace):
        return trace
    info = trace.info if isinstance(trace, FlatTrace) else lambda: cast("Trace", trace).info
    try:
        row = trace.row if isinstance(trace, FlatTrace) else flatten(trace, now)
        row |= {"created_at": now, "experiment_name": names.get(row["experiment_id"])}
        return FlatTrace(redactor.row(row) if redactor else row, info)
    except Exception as error:  # noqa: BLE001 - a malformed trace may raise any error; the quarantine stores it
        return UnreadableTrace.of(info(), f"{type(error).__name__}: {error}")


def _table(traces: list[FlatTrace]) -> tuple[pa.Table, list[UnreadableTrace]]:
    """The rows of the traces, and the traces that Arrow rejects (a lone surrogate, a number out of range)."""
    try:
        return from_dicts(AGENT_TRACES, [trace.row for trace in traces]), []
    except Exception as error:  # noqa: BLE001 - a malformed trace fails its piece with any error; halving finds it
        if len(traces) == 1:
            return from_dicts(AGENT_TRACES, []), [
                UnreadableTrace.of(traces[0].info(), f"{type(error).__name__}: {error}")
            ]
    middle = len(traces) // 2
    (first, refused_first), (second, refused_second) = _table(traces[:middle]), _table(traces[middle:])
    return pa.concat_tables([first, second]), refused_first + refused_second


def _quarantine_row(trace: UnreadableTrace, redactor: Redactor | None) -> dict[str, Any]:
    return {
        "trace_id": trace.trace_id,
        "trace_hour": floor_hour(trace.started),
        "reason": encodable(redactor.text(trace.reason) if redactor else trace.reason),
        "raw": encodable(redactor.raw(trace.raw) if redactor else trace.raw),
    }


def _id(trace: AnyTrace) -> str:
    if isinstance(trace, UnreadableTrace):
        return trace.trace_id
    return trace.row["trace_id"] if isinstance(trace, FlatTrace) else trace.info.trace_id


def _update_quarantine(
    lake: LakeResource, window: Window, found: dict[str, dict[str, Any]], readable: Collection[str]
) -> int:
    """Add the rows `found` (by trace id) to the quarantine and remove the `readable`; returns how many of them stay.

    A trace that was archived before it became unreadable stays in the archive as it was, and is in quarantine too. One
    that was in quarantine under a later hour, before its start moved, leaves it.
    """
    later = Window(window.end, window.end + MOVED_AT_MOST)
    moved = set(lake.read_columns(QUARANTINED_TRACES, later, "trace_id")["trace_id"].to_pylist()).intersection(readable)
    if moved:
        lake.remove(QUARANTINED_TRACES, later, "trace_id", moved)
    before = lake.read_columns(QUARANTINED_TRACES, window, *QUARANTINED_TRACES.columns.names).to_pylist()
    if not before and not found:
        return 0
    known = {row["trace_id"]: row for row in before}
    kept = {trace_id: row for trace_id, row in (known | found).items() if trace_id not in readable}
    if kept != known:
        lake.replace(QUARANTINED_TRACES, window, from_dicts(QUARANTINED_TRACES, list(kept.values())))
    return len(kept.keys() & found.keys())
