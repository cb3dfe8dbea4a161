"""A scorer over a window of the archive: calls and results, also after interruptions."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Feedback, Trace
from mlflow.genai.scorers import Scorer
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring import run as scoring
from monitoring_pipeline.scoring import scorers
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.run import CRASHES_IN_A_ROW, ScoreCounts, score_window
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE, Table
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests import forks

# Three hours on each side of a midnight: two folders of files.
WINDOW = Window(datetime(2026, 1, 1, 21, tzinfo=UTC), datetime(2026, 1, 2, 3, tzinfo=UTC))
COMMIT = 15
DIGEST = "d" * 16
UNREPEATABLE = {"assessed_at", "duration_ms", "dagster_run_id", "date"}
Judge = Callable[[Trace], Any]


@pytest.fixture(autouse=True)
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "COMMIT_RESULTS", COMMIT)


def counted(
    calls: list[str], judge: Judge | Scorer = scorers.tool_errors, name: str = "tools", rate: float = 1.0, **values: Any
) -> ConfiguredScorer:
    """A scorer that returns the result of `judge` and records the traces it is called for."""

    @as_scorer(timeout=0)
    def counting(trace: Trace) -> Any:
        calls.append(trace.info.trace_id)
        return judge(trace=trace) if isinstance(judge, Scorer) else judge(trace)

    return ConfiguredScorer(name, counting, values.get("digest", DIGEST), rate, values.get("filter"))


def right(trace: Trace) -> bool:
    return True


def broken(trace: Trace) -> bool:
    raise ValueError(f"cannot judge {trace.info.trace_id}")


def rows(lake: LakeResource, table: Table) -> list[dict[str, Any]]:
    """The sorted rows of the table, without columns that differ between runs."""
    columns = [name for name in table.schema.names if name not in UNREPEATABLE]
    found = lake.read_columns(table, WINDOW, *columns).to_pylist()
    return sorted(found, key=lambda row: str([row[name] for name in table.key]))


def results(lake: LakeResource) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    return rows(lake, ASSESSMENTS), rows(lake, NOT_APPLICABLE), rows(lake, SCORER_COVERAGE)


def trace_ids(lake: LakeResource, table: Table) -> list[str]:
    return [row["trace_id"] for row in rows(lake, table)]


def versions(lake: LakeResource) -> list[int]:
    return [lake.version(table) for table in (ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE)]


@pytest.fixture(scope="module")
def undisturbed(
    archived: Path, spark: SparkResource, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of one undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed") / "lake"
    shutil.copytree(archived, folder)
    lake = LakeResource(location=str(folder), spark=spark)
    score_window(lake, counted([]), WINDOW, "run")
    return results(lake)


# Each trace once


def test_the_first_run_scores_every_trace_of_the_window(archived_lake: LakeResource) -> None:
    calls: list[str] = []
    counts = score_window(archived_lake, counted(calls), WINDOW, "run")
    assert sorted(calls) == sorted(trace_ids(archived_lake, AGENT_TRACES))
    assert counts.seen == len(calls) > 3 * COMMIT
    assert (counts.scored, counts.failed) == (len(trace_ids(archived_lake, ASSESSMENTS)), 0)


def test_a_trace_has_a_row_in_assessments_or_in_not_applicable(archived_lake: LakeResource) -> None:
    counts = score_window(archived_lake, counted([]), WINDOW, "run")
    assessed, declined = trace_ids(archived_lake, ASSESSMENTS), trace_ids(archived_lake, NOT_APPLICABLE)
    assert sorted(assessed + declined) == sorted(trace_ids(archived_lake, AGENT_TRACES))
    assert len(declined) == counts.not_applicable > 0


def test_the_second_run_calls_and_commits_nothing(archived_lake: LakeResource) -> None:
    calls: list[str] = []
    score_window(archived_lake, counted(calls), WINDOW, "run")
    before = versions(archived_lake)
    calls.clear()
    assert score_window(archived_lake, counted(calls), WINDOW, "again") == ScoreCounts()
    assert calls == []
    assert versions(archived_lake) == before


def test_progress_is_reported_after_each_commit(archived_lake: LakeResource) -> None:
    reported: list[int] = []
    committed: list[int] = []

    def on_progress(counts: ScoreCounts) -> None:
        reported.append(counts.seen)
        committed.append(len(trace_ids(archived_lake, ASSESSMENTS)) + len(trace_ids(archived_lake, NOT_APPLICABLE)))

    score_window(archived_lake, counted([]), WINDOW, "run", on_progress=on_progress)
    assert reported == committed
    assert {later - earlier for earlier, later in pairwise(reported)} >= {COMMIT}


def test_a_window_within_a_day_scores_only_that_window(archived_lake: LakeResource) -> None:
    calls: list[str] = []
    hour = Window(WINDOW.start, WINDOW.start + timedelta(hours=1))
    score_window(archived_lake, counted(calls), hour, "run")
    expected = [row["trace_id"] for row in rows(archived_lake, AGENT_TRACES) if row["trace_hour"] == hour.start]
    assert sorted(calls) == sorted(expected)
    assert len(calls) > 0


# Interruptions


class Killed(BaseException):
    """Ends a run in the middle."""


@pytest.mark.parametrize("commits", [1, 3])
def test_a_run_that_ends_between_commits_is_continued(
    commits: int, archived_lake: LakeResource, undisturbed: Any
) -> None:
    calls: list[str] = []
    progress = 0

    def end(counts: ScoreCounts) -> None:
        nonlocal progress
        progress += 1
        if progress == commits:
            raise Killed

    with pytest.raises(Killed):
        score_window(archived_lake, counted(calls), WINDOW, "run", on_progress=end)
    score_window(archived_lake, counted(calls), WINDOW, "again")
    assert results(archived_lake) == undisturbed
    assert len(calls) == len(set(calls))


def test_a_run_that_ends_between_its_two_tables_repeats_at_most_a_commit(
    archived_lake: LakeResource, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    with monkeypatch.context() as patch:
        _die_at("between the tables", _raise_killed, patch)
        with pytest.raises(Killed):
            score_window(archived_lake, counted(calls), WINDOW, "run")
    score_window(archived_lake, counted(calls), WINDOW, "again")
    assert results(archived_lake) == undisturbed
    assert 0 < len(calls) - len(set(calls)) <= COMMIT


def _raise_killed() -> None:
    raise Killed


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(moment: str, die: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Make `die` happen at that moment of the next run."""
    insert, upsert = LakeResource.insert, LakeResource.upsert

    def dying_insert(lake: LakeResource, table: Table, new: Any) -> int:
        if moment == "before a commit" and lake.version(ASSESSMENTS) == 2:
            die()
        return insert(lake, table, new)

    def dying_upsert(lake: LakeResource, table: Table, new: Any) -> int:
        if moment == "between the tables" and table is NOT_APPLICABLE and new.num_rows:
            die()
        return upsert(lake, table, new)

    def dying_ledger(*_: object, **__: object) -> None:
        die()

    patch.setattr(LakeResource, "insert", dying_insert)
    patch.setattr(LakeResource, "upsert", dying_upsert)
    if moment == "before the ledger":
        patch.setattr(scoring, "update_ledger", dying_ledger)


class CallsFile(list[str]):
    """Calls that are also written to a file, so that they outlive their process; calls `die` at the given one."""

    def __init__(self, file: Path, die_at: int | None = None):
        super().__init__()
        self.file, self.die_at = file, die_at

    def append(self, trace_id: str) -> None:
        super().append(trace_id)
        with self.file.open("a") as file:
            file.write(f"{trace_id}\n")
        if len(self) == self.die_at:
            _kill_this_process()


def _run_until(moment: str, location: str, calls_file: Path) -> None:
    scoring.COMMIT_RESULTS = COMMIT
    lake = LakeResource(location=location, spark=SparkResource())
    die_at = 2 * COMMIT + 7 if moment == "in a call" else None
    with pytest.MonkeyPatch.context() as patch:
        _die_at(moment, _kill_this_process, patch)
        score_window(lake, counted(CallsFile(calls_file, die_at)), WINDOW, "killed")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """A process context with everything imported and no thread of this process."""
    return forks.context()


@pytest.mark.parametrize("moment", ["in a call", "before a commit", "between the tables", "before the ledger"])
def test_a_killed_run_is_continued(
    moment: str, archived_lake: LakeResource, undisturbed: Any, processes: ForkServerContext, tmp_path: Path
) -> None:
    calls_file = tmp_path / "calls"
    run = processes.Process(target=_run_until, args=(moment, archived_lake.location, calls_file))
    run.start()
    run.join(60)
    assert run.exitcode == -signal.SIGKILL
    score_window(archived_lake, counted(CallsFile(calls_file)), WINDOW, "again")
    calls = calls_file.read_text().split()
    assert results(archived_lake) == undisturbed
    assert len(calls) - len(set(calls)) <= COMMIT


# Concurrent runs


def _run_when_all_are_ready(location: str, calls_file: Path, ready: Any) -> None:
    scoring.COMMIT_RESULTS = COMMIT
    lake = LakeResource(location=location, spark=SparkResource())
    lake.read(AGENT_TRACES, WINDOW).count()
    ready.wait(60)
    score_window(lake, counted(CallsFile(calls_file)), WINDOW, "run")


def test_two_processes_at_once_keep_each_result_once(
    archived_lake: LakeResource, undisturbed: Any, processes: ForkServerContext, tmp_path: Path
) -> None:
    ready = processes.Barrier(2)
    files = [tmp_path / "calls-1", tmp_path / "calls-2"]
    runs = [
        processes.Process(target=_run_when_all_are_ready, args=(archived_lake.location, file, ready)) for file in files
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert all(file.read_text() for file in files)
    assert results(archived_lake) == undisturbed


def test_two_threads_at_once_keep_each_result_once(archived_lake: LakeResource, undisturbed: Any) -> None:
    both_started = threading.Barrier(2)

    def run(_: int) -> ScoreCounts:
        calls: list[str] = []

        def judge(trace: Trace) -> Any:
            if len(calls) == 1:
                both_started.wait(60)
            return scorers.tool_errors(trace=trace)

        return score_window(archived_lake, counted(calls, judge), WINDOW, "run")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert results(archived_lake) == undisturbed


def test_two_concurrent_scorers_have_the_results_of_sequential_runs(
    archived_lake: LakeResource, undisturbed: Any
) -> None:
    both_started = threading.Barrier(2)

    def run(name: str) -> ConfiguredScorer:
        calls: list[str] = []

        def judge(trace: Trace) -> Any:
            if len(calls) == 1:
                both_started.wait(60)
            return scorers.tool_errors(trace=trace)

        scorer = counted(calls, judge, name)
        score_window(archived_lake, scorer, WINDOW, "run")
        return scorer

    with ThreadPoolExecutor(2) as pool:
        configured = list(pool.map(run, ["tools", "others"]))
    for found, expected in zip(results(archived_lake), undisturbed, strict=True):
        assert [row for row in found if row["scorer"] == "tools"] == expected
        assert len(found) == 2 * len(expected)
    assert ledger_problems(archived_lake, configured, WINDOW) == []


# The sample


def drawn(ids: list[str], name: str, rate: float) -> set[str]:
    return {one for one in ids if int(hashlib.sha256(f"{one}:{name}".encode()).hexdigest(), 16) / 2**256 < rate}


def test_raising_the_rate_scores_only_the_added_traces(archived_lake: LakeResource) -> None:
    archived_ids = trace_ids(archived_lake, AGENT_TRACES)
    few, more = drawn(archived_ids, "tools", 0.1), drawn(archived_ids, "tools", 0.3)
    first: list[str] = []
    second: list[str] = []
    score_window(archived_lake, counted(first, right, rate=0.1), WINDOW, "run")
    score_window(archived_lake, counted(second, right, rate=0.3), WINDOW, "run")
    assert 0 < len(few) < len(more)
    assert (sorted(first), sorted(second)) == (sorted(few), sorted(more - few))


def test_a_row_records_the_rate_it_was_drawn_at(archived_lake: LakeResource) -> None:
    few = drawn(trace_ids(archived_lake, AGENT_TRACES), "tools", 0.1)
    for rate in (0.1, 0.3):
        score_window(archived_lake, counted([], right, rate=rate), WINDOW, "run")
    rates = {row["trace_id"]: row["sample_rate"] for row in rows(archived_lake, ASSESSMENTS)}
    assert {trace_id for trace_id, rate in rates.items() if rate == 0.1} == few
    assert set(rates.values()) == {0.1, 0.3}


def test_lowering_the_rate_removes_nothing(archived_lake: LakeResource) -> None:
    score_window(archived_lake, counted([], right, rate=0.3), WINDOW, "run")
    before = rows(archived_lake, ASSESSMENTS)
    calls: list[str] = []
    lower = counted(calls, right, rate=0.1)
    score_window(archived_lake, lower, WINDOW, "run")
    assert rows(archived_lake, ASSESSMENTS) == before
    assert calls == []
    assert ledger_problems(archived_lake, [lower], WINDOW) == []


def test_a_rate_of_zero_scores_nothing(archived_lake: LakeResource) -> None:
    calls: list[str] = []
    assert score_window(archived_lake, counted(calls, rate=0.0), WINDOW, "run") == ScoreCounts()
    assert calls == []


@pytest.mark.parametrize(
    "filter_string",
    [
        "status = 'ERROR'",
        "tags.task_id = '44'",
        "span.type = 'TOOL' AND span.status = 'ERROR'",
        "feedback.task_success = 'true'",
        "execution_time_ms > 5000 AND trace.text LIKE '%flight%'",
    ],
)
def test_a_filter_passes_the_traces_that_mlflow_finds(
    filter_string: str, archived_lake: LakeResource, recorded_store: str
) -> None:
    tracking = TrackingResource(tracking_uri=recorded_store)
    start_ms, end_ms = (int(moment.timestamp() * 1000) for moment in (WINDOW.start, WINDOW.end))
    found = tracking.client.store.search_traces(
        experiment_ids=list(tracking.experiment_names()),
        filter_string=f"{filter_string} AND timestamp_ms >= {start_ms} AND timestamp_ms < {end_ms}",
        max_results=500,
    )[0]
    calls: list[str] = []
    score_window(archived_lake, counted(calls, filter=filter_string), WINDOW, "run")
    assert sorted(calls) == sorted(info.trace_id for info in found)
    assert 0 < len(calls) < len(trace_ids(archived_lake, AGENT_TRACES))


def test_a_changed_parameter_scores_again_and_keeps_the_old_results(archived_lake: LakeResource) -> None:
    reference = f"{SHIPPED_SCORERS}:response_quality"
    entry = ScorerSettings(name="quality", scorer=reference)
    changed = ScorerSettings(name="quality", scorer=reference, params={"min_characters": 200})
    before, after = load_scorers([entry])[0], load_scorers([changed])[0]
    score_window(archived_lake, before, WINDOW, "run")
    old = rows(archived_lake, ASSESSMENTS)
    score_window(archived_lake, after, WINDOW, "run")
    both = rows(archived_lake, ASSESSMENTS)
    assert [row for row in both if row["scorer_digest"] == before.digest] == old
    assert len([row for row in both if row["scorer_digest"] == after.digest]) == len(old)
    assert ledger_problems(archived_lake, [before, after], WINDOW) == []


# Failures


def test_a_scorer_that_always_raises_leaves_failed_rows(archived_lake: LakeResource) -> None:
    scorer = counted([], broken)
    counts = score_window(archived_lake, scorer, WINDOW, "run")
    messages = {row["trace_id"]: row["error_message"] for row in rows(archived_lake, ASSESSMENTS)}
    archived_ids = trace_ids(archived_lake, AGENT_TRACES)
    assert messages == {trace_id: f"ValueError: cannot judge {trace_id}" for trace_id in archived_ids}
    assert (counts.scored, counts.failed) == (0, len(archived_ids))
    assert ledger_problems(archived_lake, [scorer], WINDOW) == []
    assert {(row["eligible"] - row["failed"], row["scored"]) for row in rows(archived_lake, SCORER_COVERAGE)} == {
        (0, 0)
    }


def test_failures_are_scored_again_only_on_request(archived_lake: LakeResource) -> None:
    calls: list[str] = []
    score_window(archived_lake, counted(calls, broken), WINDOW, "run")
    calls.clear()
    score_window(archived_lake, counted(calls, broken), WINDOW, "again")
    assert calls == []


def test_a_retry_scores_only_failed_traces_and_replaces_their_rows(archived_lake: LakeResource) -> None:
    unlucky = set(trace_ids(archived_lake, AGENT_TRACES)[::4])

    def sometimes(trace: Trace) -> bool:
        return broken(trace) if trace.info.trace_id in unlucky else right(trace)

    score_window(archived_lake, counted([], sometimes), WINDOW, "run")
    kept = [row for row in rows(archived_lake, ASSESSMENTS) if row["error_code"] is None]
    calls: list[str] = []
    retried = counted(calls, right)
    counts = score_window(archived_lake, retried, WINDOW, "again", retry_failed=True)
    after = rows(archived_lake, ASSESSMENTS)
    assert set(calls) == unlucky
    assert len(calls) == counts.scored == len(unlucky)
    assert [row for row in after if row["trace_id"] not in unlucky] == kept
    assert [(row["score"], row["error_code"]) for row in after] == [(1.0, None)] * (len(kept) + len(unlucky))
    assert ledger_problems(archived_lake, [retried], WINDOW) == []


def test_a_retry_that_fails_again_keeps_the_later_error(archived_lake: LakeResource) -> None:
    def again(trace: Trace) -> Feedback:
        return Feedback(error="again")

    score_window(archived_lake, counted([], broken), WINDOW, "run")
    score_window(archived_lake, counted([], again), WINDOW, "again", retry_failed=True)
    found = rows(archived_lake, ASSESSMENTS)
    assert {row["error_message"] for row in found} == {"again"}
    assert len(found) == len(trace_ids(archived_lake, AGENT_TRACES))


def test_a_retry_also_scores_new_traces(archived_lake: LakeResource) -> None:
    calls: list[str] = []
    score_window(archived_lake, counted(calls), WINDOW, "run", retry_failed=True)
    assert sorted(calls) == sorted(trace_ids(archived_lake, AGENT_TRACES))


def test_a_trace_that_takes_too_long_does_not_delay_others(archived_lake: LakeResource) -> None:
    slow = trace_ids(archived_lake, AGENT_TRACES)[0]
    released = threading.Event()

    @as_scorer(timeout=0.2)
    def waits(trace: Trace) -> bool:
        return released.wait() if trace.info.trace_id == slow else True

    scorer = ConfiguredScorer("waits", waits, DIGEST, 1.0, None)
    try:
        score_window(archived_lake, scorer, WINDOW, "run")
    finally:
        released.set()
    failed = [row["trace_id"] for row in rows(archived_lake, ASSESSMENTS) if row["error_code"]]
    assert failed == [slow]
    assert sorted(trace_ids(archived_lake, ASSESSMENTS)) == sorted(trace_ids(archived_lake, AGENT_TRACES))


def crashing(**params: str) -> ConfiguredScorer:
    """A scorer from the settings, which harms its process as `params` say."""
    entry = ScorerSettings(name="odd", scorer="monitoring_pipeline_tests.odd_scorers:crashing", params=params)
    return load_scorers([entry])[0]


def test_a_crash_costs_only_its_trace(archived_lake: LakeResource) -> None:
    scorer = crashing(how="kill", ends_with="8")
    counts = score_window(archived_lake, scorer, WINDOW, "run")
    crashed = [row["trace_id"] for row in rows(archived_lake, ASSESSMENTS) if row["error_code"] == "SCORER_CRASHED"]
    ids = trace_ids(archived_lake, AGENT_TRACES)
    assert sorted(crashed) == sorted(trace_id for trace_id in ids if trace_id.endswith("8"))
    assert (counts.scored, counts.failed, counts.crashed) == (len(ids) - len(crashed), len(crashed), False)
    assert ledger_problems(archived_lake, [scorer], WINDOW) == []


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_scorer_that_crashes_again_and_again_is_stopped(archived_lake: LakeResource, concurrency: int) -> None:
    scorer = crashing(how="exit")
    scorer = replace(scorer, limits=replace(scorer.limits, concurrency=concurrency))
    counts = score_window(archived_lake, scorer, WINDOW, "run")
    assert counts.crashed
    assert counts.failed == CRASHES_IN_A_ROW
    assert ledger_problems(archived_lake, [scorer], WINDOW) == []
    waiting = sum(row["pending"] for row in rows(archived_lake, SCORER_COVERAGE))
    assert waiting == len(trace_ids(archived_lake, AGENT_TRACES)) - CRASHES_IN_A_ROW


def test_large_results_are_committed_sooner(archived_lake: LakeResource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "COMMIT_CHARACTERS", 20_000)
    seen: list[int] = []
    verbose = counted([], lambda trace: Feedback(value=True, rationale="x" * 5_000))
    score_window(archived_lake, verbose, WINDOW, "run", on_progress=lambda counts: seen.append(counts.seen))
    assert {later - earlier for earlier, later in pairwise(seen[:-1])} == {4}


def test_an_unreadable_trace_is_one_failed_row(archived_lake: LakeResource) -> None:
    stored = archived_lake.read_columns(AGENT_TRACES, WINDOW, *AGENT_TRACES.schema.names)
    garbled = stored.to_pylist()
    garbled[0]["trace_json"] = "{"
    archived_lake.replace(AGENT_TRACES, WINDOW, stored.from_pylist(garbled, schema=stored.schema))
    scorer = counted([], right)
    score_window(archived_lake, scorer, WINDOW, "run")
    failed = [row["trace_id"] for row in rows(archived_lake, ASSESSMENTS) if row["error_code"]]
    assert failed == [garbled[0]["trace_id"]]
    assert ledger_problems(archived_lake, [scorer], WINDOW) == []


def test_a_trace_that_does_not_apply_is_not_called_again(archived_lake: LakeResource) -> None:
    calls: list[str] = []
    nothing = counted(calls, lambda trace: None)
    score_window(archived_lake, nothing, WINDOW, "run")
    calls.clear()
    score_window(archived_lake, nothing, WINDOW, "again", retry_failed=True)
    assert calls == []
    assert trace_ids(archived_lake, ASSESSMENTS) == []
    assert ledger_problems(archived_lake, [nothing], WINDOW) == []
