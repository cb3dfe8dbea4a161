"""Traces from a source into the archive. The archive never shrinks: what the source has since deleted stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.flatten import flatten
from monitoring_pipeline.traces.mlflow_source import UnreadableTrace
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds

if TYPE_CHECKING:
    from mlflow.entities import Trace

# A commit holds at most this much, so that memory stays flat however many or large the traces are.
COMMIT_TRACES = 2000
COMMIT_CHARACTERS = 64 * 2**20


@dataclass
class ArchiveCounts:
    """What one reading of a window did: traces read, rows added or changed, traces put into quarantine."""

    read: int = 0
    written: int = 0
    quarantined: int = 0


def archive(
    lake: LakeResource,
    window: Window,
    batches: Iterable[list[Trace | UnreadableTrace]],
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
    for rows, unreadable in _chunks(batches, now):
        for row in rows:
            row["experiment_name"] = experiment_names.get(row["experiment_id"])
        counts.written += lake.upsert(AGENT_TRACES, from_dicts(AGENT_TRACES, rows))
        quarantine.update({row["trace_id"]: row for row in unreadable})
        counts.read += len(rows) + len(unreadable)
        on_progress(counts.read)
    counts.quarantined = _update_quarantine(lake, window, quarantine)
    return counts


def _chunks(
    batches: Iterable[list[Trace | UnreadableTrace]], now: datetime
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    rows: list[dict[str, Any]] = []
    unreadable: list[dict[str, Any]] = []
    characters = 0
    for batch in batches:
        for row in _flattened(batch, now):
            if "trace_json" in row:
                rows.append(row)
                characters += len(row["trace_json"])
            else:
                unreadable.append(row)
            if len(rows) + len(unreadable) >= COMMIT_TRACES or characters >= COMMIT_CHARACTERS:
                yield rows, unreadable
                rows, unreadable, characters = [], [], 0
    if rows or unreadable:
        yield rows, unreadable


def _flattened(batch: list[Trace | UnreadableTrace], now: datetime) -> list[dict[str, Any]]:
    readable = [trace for trace in batch if not isinstance(trace, UnreadableTrace)]
    try:
        rows = [flatten(trace, now) for trace in readable]
        from_dicts(AGENT_TRACES, rows)
    except Exception:  # noqa: BLE001 - one malformed trace fails its batch, in any way; each is tried alone
        rows = [_row_or_reason(trace, now) for trace in readable]
    return rows + [_unreadable_row(trace) for trace in batch if isinstance(trace, UnreadableTrace)]


def _row_or_reason(trace: Trace, now: datetime) -> dict[str, Any]:
    try:
        row = flatten(trace, now)
        from_dicts(
            AGENT_TRACES, [row]
        )  # a row that Arrow refuses (a lone surrogate, a number out of range) must not fail its chunk
    except Exception as error:  # noqa: BLE001 - a malformed trace may raise anything, and is kept aside with the reason
        info = trace.info
        started = from_milliseconds(info.request_time)
        return _unreadable_row(UnreadableTrace(info.trace_id, started, f"{type(error).__name__}: {error}", repr(info)))
    return row


def _unreadable_row(trace: UnreadableTrace) -> dict[str, Any]:
    return {
        "trace_id": trace.trace_id,
        "trace_hour": floor_hour(trace.started),
        "reason": _encodable(trace.reason),
        "raw": _encodable(trace.raw),
    }


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _update_quarantine(lake: LakeResource, window: Window, found: dict[str, dict[str, Any]]) -> int:
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
