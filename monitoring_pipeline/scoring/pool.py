"""Scores several traces concurrently, within the scorer's limits and budget."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from monitoring_pipeline.scoring.budgets import Purse
from monitoring_pipeline.scoring.isolation import IsolatedScorer
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import PendingTrace, Result, assess

Assess = Callable[[PendingTrace], Result]


def run_all(
    scorer: ConfiguredScorer,
    pending: Iterable[PendingTrace],
    dagster_run_id: str,
    meter: Meter,
    purse: Purse,
) -> Generator[Result]:
    """Yield results of `assess` in order of completion; ends early when the budget is used up.

    Judges run in threads of this process, where the meter counts their requests, and so does code that was given as an
    object. Code from the settings runs in worker processes. At most the scorer's `concurrency` traces are under way,
    and no new one starts while a finished row waits to be consumed.
    """
    calls: AbstractContextManager[Assess]
    if scorer.model or scorer.settings is None:
        calls = nullcontext(partial(assess, scorer, dagster_run_id=dagster_run_id, meter=meter))
    else:
        calls = IsolatedScorer(scorer, dagster_run_id)
    if scorer.limits.concurrency == 1:  # a thread would only add overhead
        yield from _one_by_one(pending, calls, purse)
    else:
        yield from _concurrently(pending, calls, purse, scorer.limits.concurrency)


def _one_by_one(
    pending: Iterable[PendingTrace], calls: AbstractContextManager[Assess], purse: Purse
) -> Iterator[Result]:
    with calls as assess_one:
        for trace in pending:
            if not purse.admit(trace):
                break
            result = assess_one(trace)
            purse.settle(trace, result[0])
            yield result


def _concurrently(
    pending: Iterable[PendingTrace], calls: AbstractContextManager[Assess], purse: Purse, concurrency: int
) -> Iterator[Result]:
    under_way: dict[Future[Result], PendingTrace] = {}

    def done() -> Iterator[Result]:
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            result = future.result()
            purse.settle(under_way.pop(future), result[0])
            yield result

    # The calls end first, so that the threads of a run that is stopped do not wait for their results.
    with ThreadPoolExecutor(concurrency, thread_name_prefix="scorer") as threads, calls as assess_one:
        for trace in pending:
            while under_way and (len(under_way) == concurrency or not purse.has_room_for(trace)):
                yield from done()
            if not purse.admit(trace):
                break
            under_way[threads.submit(assess_one, trace)] = trace
        while under_way:
            yield from done()
