"""Traces from a source into the archive. The archive never shrinks: what the source has since deleted stays."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import pyarrow as pa

from monitoring_pipeline.archive.moving import follow_moved, places_of
from monitoring_pipeline.archive.tombstones import deleted_digests, trace_digest
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import FlatTrace, UnreadableTrace, encodable, flatten
from monitoring_pipeline.traces.redaction import Redactor
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace, TraceInfo

# A commit holds at most this much, so that memory stays flat however many or large the traces are.
COMMIT_CHARACTERS = 48 * 2**20  # of trace_json; the rows take some 1.75 bytes for each
COLLECTION_OBJECTS = 200_000
T = TypeVar("T")
AnyTrace: TypeAlias = "Trace | FlatTrace | UnreadableTrace"
Batch: TypeAlias = "Sequence[Trace | FlatTrace | UnreadableTrace]"


@dataclass
class ArchiveCounts:
    """What one reading of a window did: traces read, rows added or changed, traces put into quarantine.

    `deleted` are left out as they were deleted on request; `moved` were archived under another hour than they now have;
    `redactions` is how much was taken out of the traces that were read, by what found it.
    `lacking` is how many traces an hour still lacks, of those that the source has; None where these are not counted.
    """

    read: int = 0
    written: int = 0
    quarantined: int = 0
    deleted: int = 0
    moved: int = 0
    redactions: Counter[str] = field(default_factory=Counter)
    lacking: dict[datetime, int] | None = field(default=None, compare=False)


def archive(
    lake: LakeResource,
    window: Window,
    batches: Iterable[Batch],
    experiment_names: dict[str, str],
    on_progress: Callable[[int], None] = lambda read: None,
    redactor: Redactor | None = None,
    read_moved: Callable[[Mapping[str, datetime]], Iterable[Batch]] = lambda hours: (),
) -> ArchiveCounts:
    """Merge the traces of `window` into `agent_traces`, and what cannot be flattened into `quarantined_traces`.

    Committed every few thousand traces; running it again continues, and changes nothing that is already there.
    `experiment_names` (id -> name) are kept beside the ids. `on_progress` is told the number of traces read so far.
    `redactor` takes out of all of them what is not to be kept. `read_moved` is given ids and hours, and gives those of
    the traces that the source has in another hour.
    """
    counts = ArchiveCounts()
    quarantine: dict[str, dict[str, Any]] = {}
    seen = [places_of(AGENT_TRACES.schema.empty_table())]
    deleted = deleted_digests(lake, window)
    flat = functools.partial(_flat, now=datetime.now(UTC), names=experiment_names, redactor=redactor)

    def commits(batches: Iterable[Batch]) -> Iterator[tuple[pa.Table, list[UnreadableTrace]]]:
        kept = _kept(batches, deleted, counts)
        with _rare_collections(), closing(_ahead(_commits(map(flat, kept), lake.commit_rows))) as found:
            yield from found

    def archive_moved(hours: dict[str, datetime]) -> dict[str, datetime]:
        found: dict[str, datetime] = {}
        for rows, _ in commits(read_moved(hours)):
            lake.upsert(AGENT_TRACES, rows)
            found |= dict(zip(rows["trace_id"].to_pylist(), rows["trace_hour"].to_pylist(), strict=True))
        return found

    for rows, unreadable in commits(batches):
        counts.written += lake.upsert(AGENT_TRACES, rows)
        counts.redactions += removed(rows)
        quarantine.update({trace.trace_id: _unreadable_row(trace, redactor) for trace in unreadable})
        seen.append(places_of(rows))
        counts.read += rows.num_rows + len(unreadable)
        on_progress(counts.read)
    counts.quarantined = update_quarantine(lake, window, quarantine)
    counts.moved = follow_moved(lake, window, pa.concat_tables(seen), archive_moved)
    return counts


def rows_of(traces: Iterable[Trace]) -> tuple[pa.Table, list[UnreadableTrace]]:
    """The traces as rows of `agent_traces`, written nowhere, and those that cannot become one."""
    now = datetime.now(UTC)
    found = [_flat(trace, now, {}, None) for trace in traces]
    rows, refused = _table([trace for trace in found if isinstance(trace, FlatTrace)])
    return rows, [trace for trace in found if isinstance(trace, UnreadableTrace)] + refused


def removed(rows: pa.Table) -> Counter[str]:
    """How much was taken out of the rows of `agent_traces`, by what found it."""
    return sum((Counter(dict(found)) for found in rows["redactions"].drop_null().to_pylist()), Counter())


def _kept(batches: Iterable[Batch], deleted: frozenset[str], counts: ArchiveCounts) -> Iterator[AnyTrace]:
    """The traces that were not deleted on request."""
    for trace in (trace for batch in batches for trace in batch):
        if deleted and trace_digest(_id(trace)) in deleted:
            counts.deleted += 1
        else:
            yield trace


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
    traces: Iterable[FlatTrace | UnreadableTrace], commit_rows: int
) -> Iterator[tuple[pa.Table, list[UnreadableTrace]]]:
    """What is committed at once: rows of `agent_traces`, and what cannot become one."""
    for flat, unreadable in _chunks(traces, commit_rows):
        rows, refused = _table(flat)
        yield rows, unreadable + refused


def _chunks(
    found: Iterable[FlatTrace | UnreadableTrace], commit_rows: int
) -> Iterator[tuple[list[FlatTrace], list[UnreadableTrace]]]:
    traces: list[FlatTrace] = []
    unreadable: list[UnreadableTrace] = []
    characters = 0
    for trace in found:
        if isinstance(trace, FlatTrace):
            traces.append(trace)
            characters += len(trace.row["trace_json"])
        else:
            unreadable.append(trace)
        if len(traces) + len(unreadable) >= commit_rows or characters >= COMMIT_CHARACTERS:
            yield traces, unreadable
            traces, unreadable, characters = [], [], 0
    if traces or unreadable:
        yield traces, unreadable


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
    except Exception as error:  # noqa: BLE001 - a malformed trace may raise anything, and is kept aside with the reason
        return _unreadable(info(), error)


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


def _unreadable_row(trace: UnreadableTrace, redactor: Redactor | None) -> dict[str, Any]:
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
