"""Runs a scorer on the traces of a window that it has not seen yet, and commits results as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.scoring.budgets import Purse, spending_alone
from monitoring_pipeline.scoring.coverage import update_ledger, waiting_hours
from monitoring_pipeline.scoring.isolation import SCORER_CRASHED, SCORER_TIMEOUT
from monitoring_pipeline.scoring.metering import meter_of
from monitoring_pipeline.scoring.pending import pending_rows, pending_traces
from monitoring_pipeline.scoring.pool import run_all
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import Result
from monitoring_pipeline.scoring.sessions import later
from monitoring_pipeline.scoring.workers import run_in_engine, runs_in_engine
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE, SUPERSEDED_ASSESSMENTS
from monitoring_pipeline.windows import Window

COMMIT_RESULTS = 500  # a crash costs at most this many calls from this process
COMMIT_CHARACTERS = 16_000_000  # of rationales and values, so that results fit into memory
CRASHES_IN_A_ROW = 5


@dataclass
class ScoreCounts:
    """Counts of one run: traces scored, failed (a row with the error) and not applicable.

    `over_budget` is the usage at which the scorer's budget ended the run, else empty. `crashed` tells that it ended as
    the scorer's processes hung or crashed on CRASHES_IN_A_ROW traces in a row. `elsewhere` has the hours outside
    the window with results: of sessions that began earlier, and of traces that never ended.
    """

    scored: int = 0
    failed: int = 0
    not_applicable: int = 0
    over_budget: str = ""
    crashed: bool = False
    elsewhere: set[datetime] = field(default_factory=set)

    @property
    def seen(self) -> int:
        return self.scored + self.failed + self.not_applicable


def score_window(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    dagster_run_id: str,
    retry_failed: bool = False,
    newest_first: bool = False,
    on_progress: Callable[[ScoreCounts], None] = lambda counts: None,
) -> ScoreCounts:
    """Run the scorer on sampled traces in `window` without a result for its digest, then update the ledger.

    Traces whose content has changed since their result are scored again; the earlier result moves to
    `superseded_assessments`. A session scorer also runs on sessions that began before `window` and continue in it,
    any other scorer on traces before `window` that have not ended and are settled by now. With `retry_failed`, traces
    whose result is an error are scored again; the error stays if the scorer now returns None. When the scorer's budget
    is used up, or its processes do not survive, the run ends early without an error. `on_progress` is called after each
    commit.
    """
    counts = ScoreCounts()
    version = lake.version(AGENT_TRACES)
    in_engine = runs_in_engine(lake, scorer)
    # Traces under way count as well, so that a crash never costs more than COMMIT_RESULTS calls.
    commit_results = lake.commit_rows if in_engine else max(1, COMMIT_RESULTS - scorer.limits.concurrency + 1)
    replaces = retry_failed or scorer.session_idle is not None
    batch: list[Result] = []

    def commit() -> None:
        nonlocal batch
        results, batch = batch, []
        _commit(lake, results, replaces, counts)
        counts.elsewhere.update(row["trace_hour"] for row, _ in results if row["trace_hour"] not in window)
        on_progress(counts)

    with spending_alone(lake, scorer, window):
        purse = Purse(lake, scorer)
        meter = meter_of(lake.location, scorer.name, scorer.limits)
        if in_engine:  # the whole window at once; the workers process its parts in parallel
            due = pending_rows(lake, scorer, window, version, [window], retry_failed)
            results = run_in_engine(scorer, due, dagster_run_id)
        else:
            pending = pending_traces(lake, scorer, window, version, retry_failed, newest_first)
            results = run_all(scorer, pending, dagster_run_id, meter, purse)
        characters = 0
        try:
            for result in _while_it_survives(results, counts):
                batch.append(result)
                characters += _characters(result)
                if len(batch) >= commit_results or characters >= COMMIT_CHARACTERS:
                    characters = 0
                    commit()
                    if purse.is_stale:
                        purse.refresh()
        finally:  # also when the run is stopped: finished results have been paid for
            if batch:
                commit()
    counts.over_budget = purse.used_up
    update_ledger(lake, [scorer], window, over_budget=bool(counts.over_budget))
    elsewhere = counts.elsewhere
    if scorer.session_idle is not None:
        # A late trace may have become a session's first, in place of a trace that was waiting.
        elsewhere = elsewhere.union(waiting_hours(lake, scorer, later(window)))
    if elsewhere:
        update_ledger(lake, [scorer], Window.covering([*elsewhere]))
    return counts


def _while_it_survives(results: Generator[Result], counts: ScoreCounts) -> Iterator[Result]:
    """`results` up to the end of CRASHES_IN_A_ROW traces that the scorer's processes did not survive."""
    crashes = 0
    with closing(results):
        for result in results:
            yield result
            row, _ = result
            crashes = crashes + 1 if row.get("error_code") in (SCORER_TIMEOUT, SCORER_CRASHED) else 0
            if crashes == CRASHES_IN_A_ROW:
                counts.crashed = True
                return


def _characters(result: Result) -> int:
    row, _ = result
    return sum(len(row.get(column) or "") for column in ("value", "rationale", "error_message"))


def _commit(lake: LakeResource, results: list[Result], replaces: bool, counts: ScoreCounts) -> None:
    rows = [row for row, applies in results if applies]
    declined = [row for row, applies in results if not applies]
    superseded = _keep_superseded(lake, [row for row, _ in results])
    # Only a retried error, a continued session or a changed trace has an earlier result to replace.
    write = lake.upsert if replaces or superseded else lake.insert
    write(ASSESSMENTS, from_dicts(ASSESSMENTS, rows))
    # Removed first: a run that dies in between leaves the trace pending, not with a result of its earlier content.
    if gone := superseded.intersection(row["assessment_id"] for row in declined):
        lake.remove(ASSESSMENTS, _window_of(declined), "assessment_id", gone)
    lake.upsert(NOT_APPLICABLE, from_dicts(NOT_APPLICABLE, declined))
    failed = sum(row["error_code"] is not None for row in rows)
    counts.failed += failed
    counts.scored += len(rows) - failed
    counts.not_applicable += len(declined)


def _keep_superseded(lake: LakeResource, new: list[dict[str, Any]]) -> set[str]:
    """Copy the results that `new` ones replace, as the content has changed, into the table of superseded results.

    Returns their assessment ids.
    """
    digests = {row["assessment_id"]: row["content_digest"] for row in new}
    window = _window_of(new)
    known = lake.read_columns(ASSESSMENTS, window, "assessment_id", "content_digest").to_pylist()
    changed = {
        row["assessment_id"]
        for row in known
        if row["assessment_id"] in digests and row["content_digest"] != digests[row["assessment_id"]]
    }
    if changed:
        rows = lake.read_columns(ASSESSMENTS, window, *ASSESSMENTS.columns.names).filter(
            pc.field("assessment_id").isin([*changed])
        )
        kept = [{**row, "superseded_at": datetime.now(UTC)} for row in rows.to_pylist()]
        lake.insert(SUPERSEDED_ASSESSMENTS, from_dicts(SUPERSEDED_ASSESSMENTS, kept))
    return changed


def _window_of(rows: list[dict[str, Any]]) -> Window:
    return Window.covering([row["trace_hour"] for row in rows])
