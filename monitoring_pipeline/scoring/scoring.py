"""A scorer run over a window of the archive: only the traces that it has not seen, committed as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.scoring.budgets import Purse, spending_alone
from monitoring_pipeline.scoring.builtins import reads_spans
from monitoring_pipeline.scoring.coverage import trace_states, update_ledger
from monitoring_pipeline.scoring.metering import Meter, meter_of
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import PendingTrace, Spent, assess
from monitoring_pipeline.scoring.sessions import earlier, whole_sessions
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE
from monitoring_pipeline.windows import HOUR, Window, from_milliseconds

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

COMMIT_RESULTS = 500  # a crash costs at most this many calls


@dataclass
class ScoreCounts:
    """What one run did: traces scored, failed (a row with the error) and found not applicable.

    `over_budget` says how much was used where the scorer's budget ended the run, else it is empty.
    """

    scored: int = 0
    failed: int = 0
    not_applicable: int = 0
    over_budget: str = ""

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
    """Run the scorer on the traces of its sample in `window` that have no result for its digest, then the ledger.

    A scorer of sessions also sees those that began before `window` and go on in it. With `retry_failed`, traces whose
    result is an error are scored again; an error stays where the scorer now returns None. The run ends early, and well,
    when the scorer's budget is used up. `on_progress` is called after each commit.
    """
    counts = ScoreCounts()
    version = lake.version(AGENT_TRACES)
    # Those under way beside it count too, so that a crash never costs more than COMMIT_RESULTS.
    commit_results = max(1, COMMIT_RESULTS - scorer.limits.concurrency + 1)
    replaces = retry_failed or scorer.session_idle is not None
    batch: list[tuple[dict[str, Any], bool]] = []
    touched = window.start

    def commit() -> None:
        nonlocal batch, touched
        results, batch = batch, []
        _commit(lake, results, replaces, counts)
        touched = min([touched, *(row["trace_hour"] for row, _ in results)])
        on_progress(counts)

    with spending_alone(lake, scorer):
        purse = Purse(lake, scorer)
        meter = meter_of(lake.location, scorer.name, scorer.limits)
        due = _due(lake, scorer, window, version, retry_failed, newest_first)
        try:
            for result in _results(scorer, due, dagster_run_id, meter, purse, counts):
                batch.append(result)
                if len(batch) >= commit_results:
                    commit()
                    if purse.is_stale:
                        purse.refresh()
        finally:  # also where the run is told to stop: what is done has been paid for
            if batch:
                commit()
    update_ledger(lake, [scorer], Window(touched, window.end), over_budget=bool(counts.over_budget))
    return counts


def _due(
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    version: int,
    retry_failed: bool,
    newest_first: bool,
) -> Iterator[PendingTrace]:
    """What is to be scored, day by day or, with `newest_first`, hour by hour."""
    from pyspark.sql import functions as F

    def due(part: Window) -> DataFrame:
        states = trace_states(lake, scorer, part, version)
        return states.where(F.col("due") | (F.lit(retry_failed) & (F.col("state") == "failed")))

    for part in _parts(window, newest_first):
        yield from _pending(lake, scorer, due(part), part, version)
    if scorer.session_idle is not None:
        before = earlier(window)
        # Also what was not yet quiet when the hour before was scored.
        since_ms = (window.start - scorer.session_idle - HOUR).timestamp() * 1000
        going_on = due(before).where(F.unix_millis("last_active") >= since_ms)
        yield from _pending(lake, scorer, going_on, before, version)


def _pending(
    lake: LakeResource, scorer: ConfiguredScorer, due: DataFrame, window: Window, version: int
) -> Iterator[PendingTrace]:
    from pyspark.sql import functions as F

    traces = lake.read(AGENT_TRACES, window, version)
    if scorer.session_idle is None:
        text = ["trace_json"] if scorer.model and reads_spans(scorer.scorer) else ["request", "response"]
        prompt_bytes = sum((F.octet_length(F.coalesce(name, F.lit(""))) for name in text), F.lit(0))
        shown = traces.select(
            "trace_id",
            F.lit(None).cast("string").alias("session_id"),
            F.array("trace_json").alias("traces"),
            prompt_bytes.alias("prompt_bytes"),
        )
    else:
        shown = whole_sessions(lake, due.select("trace_id"), window, version)
    hour_ms = F.unix_millis("trace_hour").alias("hour_ms")  # a timestamp would arrive without its zone
    wanted = due.select("trace_id", hour_ms, "experiment_id", "input_tokens", "output_tokens", "cost_usd")
    for row in wanted.join(shown, "trace_id").toLocalIterator():
        yield PendingTrace(
            row["trace_id"],
            from_milliseconds(row["hour_ms"]),
            row["experiment_id"],
            tuple(row["traces"]),
            row["session_id"],
            row["prompt_bytes"],
            Spent(row["input_tokens"], row["output_tokens"], row["cost_usd"]),
        )


def _results(
    scorer: ConfiguredScorer,
    pending: Iterable[PendingTrace],
    dagster_run_id: str,
    meter: Meter,
    purse: Purse,
    counts: ScoreCounts,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Rows as `assess` gives them, in the order in which they are done; ends early when the budget does."""
    under_way: dict[Future[tuple[dict[str, Any], bool]], PendingTrace] = {}

    def done() -> Iterator[tuple[dict[str, Any], bool]]:
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            result = future.result()
            purse.settle(under_way.pop(future), result[0])
            yield result

    with ThreadPoolExecutor(scorer.limits.concurrency, thread_name_prefix=f"scorer-{scorer.name}") as pool:
        for trace in pending:
            while under_way and (len(under_way) == scorer.limits.concurrency or not purse.has_room_for(trace)):
                yield from done()
            if not purse.has_room_for(trace):
                counts.over_budget = str(purse)
                break
            purse.reserve(trace)
            under_way[pool.submit(assess, scorer, trace, dagster_run_id, meter)] = trace
        while under_way:
            yield from done()


def _commit(
    lake: LakeResource, results: list[tuple[dict[str, Any], bool]], replaces: bool, counts: ScoreCounts
) -> None:
    rows = [row for row, applies in results if applies]
    declined = [row for row, applies in results if not applies]
    # Only an error that is tried again, and a session that went on, have an earlier result to replace.
    write = lake.upsert if replaces else lake.insert
    write(ASSESSMENTS, from_dicts(ASSESSMENTS, rows))
    write(NOT_APPLICABLE, from_dicts(NOT_APPLICABLE, declined))
    failed = sum(row["error_code"] is not None for row in rows)
    counts.failed += failed
    counts.scored += len(rows) - failed
    counts.not_applicable += len(declined)


def _parts(window: Window, newest_first: bool) -> Iterator[Window]:
    if newest_first:
        for hour in sorted(window.hours(), reverse=True):
            yield Window(max(window.start, hour), min(window.end, hour + HOUR))
        return
    # Day by day, so that a commit touches one folder of files and a large backfill holds one day's ids at a time.
    for day in window.days():
        midnight = datetime.combine(day, time(), UTC)
        yield Window(max(window.start, midnight), min(window.end, midnight + timedelta(days=1)))
