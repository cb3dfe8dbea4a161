"""A scorer run over a window of the archive: only the traces that it has not seen, committed as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import islice
from typing import Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.scoring.coverage import trace_states, update_ledger
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import PendingTrace, assess
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE
from monitoring_pipeline.windows import Window, from_milliseconds

COMMIT_RESULTS = 500  # a crash costs at most this many calls


@dataclass
class ScoreCounts:
    """What one run did: traces scored, failed (a row with the error) and found not applicable."""

    scored: int = 0
    failed: int = 0
    not_applicable: int = 0

    @property
    def seen(self) -> int:
        return self.scored + self.failed + self.not_applicable


def score_window(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    dagster_run_id: str,
    retry_failed: bool = False,
    on_progress: Callable[[ScoreCounts], None] = lambda counts: None,
) -> ScoreCounts:
    """Run the scorer on the traces of its sample in `window` that have no result for its digest, then the ledger.

    With `retry_failed`, those whose result is an error are scored again; an error stays where the scorer now returns
    None. `on_progress` is called after each commit.
    """
    counts = ScoreCounts()
    states = {"pending", "failed"} if retry_failed else {"pending"}
    version = lake.version(AGENT_TRACES)
    for day in _days(window):
        pending = _pending(lake, scorer, day, version, states)
        while chunk := list(islice(pending, COMMIT_RESULTS)):
            rows, declined = _assess_all(scorer, chunk, dagster_run_id, counts)
            # Failed rows are the only ones that a later result replaces.
            (lake.upsert if retry_failed else lake.insert)(ASSESSMENTS, from_dicts(ASSESSMENTS, rows))
            lake.insert(NOT_APPLICABLE, from_dicts(NOT_APPLICABLE, declined))
            on_progress(counts)
    update_ledger(lake, [scorer], window)
    return counts


def _pending(
    lake: LakeResource, scorer: ConfiguredScorer, window: Window, version: int, states: set[str]
) -> Iterator[PendingTrace]:
    from pyspark.sql import functions as F

    wanted = trace_states(lake, scorer, window, version).where(F.col("state").isin(*states)).select("trace_id")
    traces = lake.read(AGENT_TRACES, window, version).join(wanted, "trace_id")
    hour_ms = F.unix_millis("trace_hour").alias("hour_ms")  # a timestamp would arrive without its zone
    for row in traces.select("trace_id", hour_ms, "experiment_id", "trace_json").toLocalIterator():
        yield PendingTrace(row["trace_id"], from_milliseconds(row["hour_ms"]), row["experiment_id"], row["trace_json"])


def _assess_all(
    scorer: ConfiguredScorer, chunk: list[PendingTrace], dagster_run_id: str, counts: ScoreCounts
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, declined = [], []
    for pending in chunk:
        row, applies = assess(scorer, pending, dagster_run_id)
        if not applies:
            declined.append(row)
            counts.not_applicable += 1
            continue
        rows.append(row)
        if row["error_code"]:
            counts.failed += 1
        else:
            counts.scored += 1
    return rows, declined


def _days(window: Window) -> Iterator[Window]:
    # Day by day, so that a commit touches one folder of files and a large backfill holds one day's ids at a time.
    for day in window.days():
        midnight = datetime.combine(day, time(), UTC)
        yield Window(max(window.start, midnight), min(window.end, midnight + timedelta(days=1)))
