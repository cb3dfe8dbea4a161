"""Scores several traces concurrently, within the scorer's limits and budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from monitoring_pipeline.scoring.budgets import Purse
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import PendingTrace, assess


def run_all(
    scorer: ConfiguredScorer,
    pending: Iterable[PendingTrace],
    dagster_run_id: str,
    meter: Meter,
    purse: Purse,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield results of `assess` in order of completion; ends early when the budget is used up.

    At most the scorer's `concurrency` traces are under way, and no new one starts while a finished row waits to be
    consumed.
    """
    if scorer.limits.concurrency == 1:  # a thread would only add overhead
        yield from _one_by_one(scorer, pending, dagster_run_id, meter, purse)
        return
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
            if not purse.admit(trace):
                break
            under_way[pool.submit(assess, scorer, trace, dagster_run_id, meter)] = trace
        while under_way:
            yield from done()


def _one_by_one(
    scorer: ConfiguredScorer, pending: Iterable[PendingTrace], dagster_run_id: str, meter: Meter, purse: Purse
) -> Iterator[tuple[dict[str, Any], bool]]:
    for trace in pending:
        if not purse.admit(trace):
            break
        result = assess(scorer, trace, dagster_run_id, meter)
        purse.settle(trace, result[0])
        yield result
