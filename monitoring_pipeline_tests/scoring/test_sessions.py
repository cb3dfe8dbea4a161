"""Scorers of sessions: their calls, the place of their results, and the ledger."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import AssessmentSource, Feedback, Trace, TraceState
from mlflow.entities.trace_location import TraceLocation
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring import pending
from monitoring_pipeline.scoring import run as scoring
from monitoring_pipeline.scoring.coverage import ledger_problems, trace_states, update_ledger
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.run import ScoreCounts, score_window
from monitoring_pipeline.scoring.sessions import SPAN, whole_sessions
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE, Table
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.scoring.model_double import ModelDouble, serving
from monitoring_pipeline_tests.sources.stores import START, trace_id

MINUTE, HOURS, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
HOUR = Window(START, START + HOURS)
EVER = Window(START - DAY, START + 21 * DAY)  # the window of all traces with explicit times
DIGEST = "d" * 16
Judge = Callable[[list[Trace]], Any]
Calls = list[list[str]]


def scorer_of(
    calls: Calls, judge: Judge = len, idle: timedelta = 30 * MINUTE, rate: float = 1.0, **values: Any
) -> ConfiguredScorer:
    """A scorer of sessions that returns the result of `judge` and records the traces it is called with."""

    @as_scorer(timeout=0)
    def whole(session: list[Trace]) -> Any:
        calls.append([trace.info.trace_id for trace in session])
        return judge(session)

    assert whole.is_session_level_scorer
    return ConfiguredScorer("whole", whole, DIGEST, rate, session_idle=idle, **{"filter": None, **values})


def put(lake: LakeResource, *traces: Trace) -> None:
    archive_traces(lake, EVER, traces)


def at(number: int, offset: timedelta, session: str | None = "s", experiment: str = "1", **info: Any) -> Trace:
    """Trace `number` of the session, that long after START."""
    trace = made_trace(number, START + offset, session, **info)
    trace.info.trace_location = TraceLocation.from_experiment_id(experiment)
    return trace


def hour_of(offset: timedelta) -> Window:
    start = floor_hour(START + offset)
    return Window(start, start + HOURS)


def rows(lake: LakeResource, table: Table = ASSESSMENTS) -> list[dict[str, Any]]:
    columns = table.columns.names
    found = lake.read_columns(table, Window(START - 30 * DAY, datetime.now(UTC) + DAY), *columns).to_pylist()
    return sorted(found, key=lambda row: str([row[name] for name in table.key]))


def judged(lake: LakeResource) -> dict[str, int]:
    """The first trace of each assessed session, and the session's number of traces."""
    return {row["trace_id"]: row["session_traces"] for row in rows(lake)}


def totals(lake: LakeResource) -> dict[str, int]:
    counts = Counter[str]()
    for line in rows(lake, SCORER_COVERAGE):
        counts.update({name: value for name, value in line.items() if isinstance(value, int) and value})
    return dict(counts)


def ids(*numbers: int) -> list[str]:
    return [trace_id(number) for number in numbers]


def is_drawn(number: int, rate: float) -> bool:
    return int(hashlib.sha256(f"{trace_id(number)}:whole".encode()).hexdigest(), 16) / 2**256 < rate


# Input of a scorer of sessions, and the place of its result


def test_a_session_is_seen_once_and_in_order(lake: LakeResource) -> None:
    put(lake, at(3, 2 * MINUTE), at(1, 5 * MINUTE), at(2, 9 * MINUTE), at(7, 4 * MINUTE, "other"))
    calls: Calls = []
    scorer = scorer_of(calls)
    assert score_window(lake, scorer, HOUR, "run") == ScoreCounts(scored=2)
    assert sorted(calls) == sorted([ids(3, 1, 2), ids(7)])
    first = next(row for row in rows(lake) if row["trace_id"] == trace_id(3))
    shown = {name: first[name] for name in ("trace_hour", "session_id", "session_traces", "score", "experiment_id")}
    assert shown == {
        "trace_hour": START,
        "session_id": "s",
        "session_traces": 3,
        "score": 3.0,
        "experiment_id": "1",
    }
    assert totals(lake) == {"archived": 4, "filtered_out": 2, "eligible": 2, "scored": 2}
    assert ledger_problems(lake, [scorer], HOUR) == []


def test_traces_that_start_together_have_a_fixed_order(lake: LakeResource) -> None:
    put(lake, *(at(number, MINUTE) for number in (5, 2, 4, 1, 3)))
    calls: Calls = []
    score_window(lake, scorer_of(calls), HOUR, "run")
    assert calls == [ids(1, 2, 3, 4, 5)]


def test_a_second_run_calls_and_commits_nothing(lake: LakeResource) -> None:
    put(lake, at(1, MINUTE), at(2, 2 * MINUTE))
    calls: Calls = []
    score_window(lake, scorer_of(calls), HOUR, "run")
    versions = [lake.version(table) for table in (ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE)]
    assert score_window(lake, scorer_of(calls), HOUR, "again") == ScoreCounts()
    assert len(calls) == 1
    assert versions == [lake.version(table) for table in (ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE)]


def test_traces_without_a_session_are_filtered_out(lake: LakeResource) -> None:
    empty = at(2, MINUTE)
    empty.info.trace_metadata["mlflow.trace.session"] = ""
    put(lake, at(1, MINUTE, None), empty, at(3, 2 * MINUTE))
    calls: Calls = []
    score_window(lake, scorer_of(calls), HOUR, "run")
    assert calls == [ids(3)]
    assert totals(lake) == {"archived": 3, "filtered_out": 2, "eligible": 1, "scored": 1}


def test_one_id_in_two_experiments_is_two_sessions(lake: LakeResource) -> None:
    traces = [at(number, number * MINUTE, experiment=str(number % 2)) for number in range(6)]
    nowhere = [at(number, number * MINUTE) for number in (6, 7)]
    for trace in nowhere:
        trace.info.trace_location = TraceLocation.from_databricks_uc_schema("catalog", "schema")
    put(lake, *traces, *nowhere)
    calls: Calls = []
    scorer = scorer_of(calls)
    score_window(lake, scorer, HOUR, "run")
    assert sorted(calls) == [ids(0, 2, 4), ids(1, 3, 5), ids(6, 7)]
    assert ledger_problems(lake, [scorer], HOUR) == []


@pytest.mark.parametrize("session", ["' OR 1=1 --", "a`b\\c%_", "\u202eéß\N{PILE OF POO}", "x" * 200, "a\nb\tc"])
def test_a_session_id_may_be_any_text(session: str, lake: LakeResource) -> None:
    put(lake, at(1, MINUTE, session), at(2, 2 * MINUTE, session), at(3, 3 * MINUTE, session + "'"))
    calls: Calls = []
    score_window(lake, scorer_of(calls), HOUR, "run")
    assert sorted(calls) == [ids(1, 2), ids(3)]
    assert [row["session_id"] for row in rows(lake) if row["session_traces"] == 2] == [session]


def test_many_sessions_are_read_in_batches(lake: LakeResource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "SESSIONS_AT_A_TIME", 4)
    put(lake, *(at(number, number * MINUTE, f"s{number % 10}") for number in range(30)))
    calls: Calls = []
    score_window(lake, scorer_of(calls), HOUR, "run")
    assert sorted(calls) == [ids(number, number + 10, number + 20) for number in range(10)]


def test_a_session_of_large_traces_is_read_completely(lake: LakeResource) -> None:
    long = "é" * 2**20
    put(lake, *(at(number, number * MINUTE, answer=long) for number in range(6)))
    seen: list[int] = []

    def length(session: list[Trace]) -> int:
        seen.extend(str(trace.data.spans[0].outputs).count("é") for trace in session)
        return len(session)

    score_window(lake, scorer_of([], length), HOUR, "run")
    assert seen == [2**20] * 6


def test_the_size_of_a_judges_input_is_measured_over_the_whole_session(lake: LakeResource) -> None:
    traces = [at(1, MINUTE, answer="é" * 100), at(2, 2 * MINUTE), at(3, 3 * MINUTE, "other")]
    put(lake, *traces)
    heads = lake.read(AGENT_TRACES, HOUR).where("trace_id = '" + trace_id(1) + "'")
    stored = lake.read_columns(AGENT_TRACES, HOUR, "trace_id", "request", "response", "trace_json").to_pylist()
    for text in (["request", "response"], ["trace_json"]):
        expected = sum(len(row[name].encode()) for row in stored if row["trace_id"] in ids(1, 2) for name in text)
        [session] = whole_sessions(lake, heads, HOUR, lake.version(AGENT_TRACES), text).collect()
        assert (session["trace_id"], session["prompt_bytes"]) == (trace_id(1), expected)


# Sample and filter


def test_the_first_trace_decides_whether_its_session_is_sampled(lake: LakeResource) -> None:
    put(lake, *(at(number, number * MINUTE, f"s{number % 20}") for number in range(40)))
    calls: Calls = []
    scorer = scorer_of(calls, rate=0.4)
    score_window(lake, scorer, HOUR, "run")
    drawn = [number for number in range(20) if is_drawn(number, 0.4)]
    assert 0 < len(drawn) < 20
    assert sorted(calls) == [ids(number, number + 20) for number in drawn]
    assert totals(lake) == {
        "archived": 40,
        "filtered_out": 20,
        "unsampled": 20 - len(drawn),
        "eligible": len(drawn),
        "scored": len(drawn),
    }


def test_the_filter_applies_to_the_first_trace(lake: LakeResource) -> None:
    traces = [at(1, MINUTE), at(2, 2 * MINUTE), at(3, 3 * MINUTE, "other"), at(4, 4 * MINUTE, "other")]
    traces[0].info.state = traces[3].info.state = TraceState.ERROR
    put(lake, *traces)
    calls: Calls = []
    score_window(lake, scorer_of(calls, filter="status = 'ERROR'"), HOUR, "run")
    assert calls == [ids(1, 2)]
    assert totals(lake) == {"archived": 4, "filtered_out": 3, "eligible": 1, "scored": 1}


@pytest.mark.parametrize("narrower", [{"sample_rate": 0.0}, {"filter": "status = 'ERROR'"}], ids=str)
def test_a_session_outside_a_narrower_sample_is_not_assessed_again(
    narrower: dict[str, Any], lake: LakeResource
) -> None:
    put(lake, at(1, MINUTE))
    calls: Calls = []
    scorer = scorer_of(calls)
    score_window(lake, scorer, HOUR, "run")
    put(lake, at(2, 5 * MINUTE))
    score_window(lake, replace(scorer, **narrower), HOUR, "again")
    assert calls == [ids(1)]
    assert totals(lake) == {"archived": 2, "filtered_out": 1, "eligible": 1, "scored": 1}


# Quiet


def just_now(number: int, ago: timedelta, lasts: timedelta = timedelta(), session: str = "s") -> Trace:
    """Trace `number`, which started that long ago."""
    trace = made_trace(number, datetime.now(UTC) - ago, session)
    trace.info.execution_duration = lasts // timedelta(milliseconds=1)
    return trace


def archive_now(lake: LakeResource, *traces: Trace) -> Window:
    """Archive the traces and return the window of their hours."""
    window = Window.covering([from_milliseconds(trace.info.request_time) for trace in traces])
    archive_traces(lake, window, traces)
    return window


def test_a_session_waits_until_it_is_quiet(lake: LakeResource) -> None:
    window = archive_now(
        lake, just_now(1, 40 * MINUTE), just_now(2, 20 * MINUTE), just_now(3, 35 * MINUTE, session="t")
    )
    calls: Calls = []
    scorer = scorer_of(calls)
    assert score_window(lake, scorer, window, "run").scored == 1
    assert calls == [ids(3)]
    assert totals(lake) == {"archived": 3, "filtered_out": 1, "eligible": 2, "scored": 1, "pending": 1}
    assert ledger_problems(lake, [scorer], window) == []
    score_window(lake, replace(scorer, session_idle=15 * MINUTE), window, "later")
    assert calls == [ids(3), ids(1, 2)]
    assert totals(lake) == {"archived": 3, "filtered_out": 1, "eligible": 2, "scored": 2}


def test_quiet_time_counts_from_the_end_of_traces(lake: LakeResource) -> None:
    window = archive_now(lake, just_now(1, 300 * MINUTE, lasts=280 * MINUTE), just_now(2, 200 * MINUTE))
    calls: Calls = []
    score_window(lake, scorer_of(calls), window, "run")
    assert calls == []
    score_window(lake, scorer_of(calls, idle=19 * MINUTE), window, "run")
    assert calls == [ids(1, 2)]


def test_a_session_that_was_not_quiet_is_scored_by_the_next_hours_run(lake: LakeResource) -> None:
    window = archive_now(lake, just_now(1, 300 * MINUTE, lasts=280 * MINUTE), just_now(2, 200 * MINUTE))
    calls: Calls = []
    for hour in window.hours():
        score_window(lake, scorer_of(calls), Window(hour, hour + HOURS), "run")
    assert (calls, totals(lake)["pending"]) == ([], 1)
    now = floor_hour(datetime.now(UTC))
    scorer = scorer_of(calls, idle=15 * MINUTE)
    score_window(lake, scorer, Window(now, now + HOURS), "run")
    assert calls == [ids(1, 2)]
    assert totals(lake) == {"archived": 2, "filtered_out": 1, "eligible": 1, "scored": 1}
    assert ledger_problems(lake, [scorer], window) == []


def test_traces_without_an_end_do_not_delay_a_session(lake: LakeResource) -> None:
    traces = [at(1, MINUTE), at(2, 2 * MINUTE), at(3, 70 * MINUTE)]
    traces[1].info.execution_duration = None
    traces[2].info.execution_duration = -(10**9)
    put(lake, *traces)
    calls: Calls = []
    score_window(lake, scorer_of(calls), HOUR, "run")
    assert calls == [ids(1, 2, 3)]


def test_a_run_looks_back_over_sessions_that_the_previous_run_left_waiting(lake: LakeResource) -> None:
    put(lake, at(1, 100 * MINUTE), at(2, 80 * MINUTE, "t"), at(3, 20 * MINUTE, "u"))
    calls: Calls = []
    score_window(lake, scorer_of(calls), hour_of(2 * HOURS), "run")
    assert sorted(calls) == [ids(1), ids(2)]


# Sessions that continue


def priced(session: list[Trace]) -> Feedback:
    """A result with usage: 10 input tokens and half a dollar per trace, 1 output token."""
    used = {
        "mlflow.assessment.judgeInputTokens": 10 * len(session),
        "mlflow.assessment.judgeOutputTokens": 1,
        "mlflow.assessment.judgeCost": 0.5 * len(session),
    }
    return Feedback(value=len(session), metadata=used, source=AssessmentSource("LLM_JUDGE", "m"))


def test_a_session_that_continues_is_assessed_again(lake: LakeResource) -> None:
    put(lake, at(1, MINUTE), at(2, 2 * MINUTE))
    calls: Calls = []
    scorer = scorer_of(calls, priced)
    score_window(lake, scorer, HOUR, "run")
    [before] = rows(lake)
    put(lake, at(3, 40 * MINUTE), at(4, 2 * HOURS))
    score_window(lake, scorer, hour_of(2 * HOURS), "again")
    [after] = rows(lake)
    assert calls == [ids(1, 2), ids(1, 2, 3, 4)]
    assert after["assessment_id"] == before["assessment_id"]
    assert after["assessed_at"] > before["assessed_at"]
    used = ("session_traces", "score", "input_tokens", "output_tokens", "cost_usd", "dagster_run_id")
    assert [before[name] for name in used] == [2, 2.0, 20, 1, 1.0, "run"]
    assert [after[name] for name in used] == [4, 4.0, 60, 2, 3.0, "again"]
    assert ledger_problems(lake, [scorer], Window(START, START + 3 * HOURS)) == []
    score_window(lake, scorer, hour_of(2 * HOURS), "again")
    assert len(calls) == 2


def test_a_session_that_continues_and_is_not_quiet_keeps_its_result(lake: LakeResource) -> None:
    window = archive_now(lake, just_now(1, 90 * MINUTE))
    calls: Calls = []
    score_window(lake, scorer_of(calls), window, "run")
    now = archive_now(lake, just_now(2, MINUTE))
    scorer = scorer_of(calls)
    score_window(lake, scorer, now, "run")
    assert calls == [ids(1)]
    assert totals(lake) == {"archived": 2, "filtered_out": 1, "eligible": 1, "scored": 1}
    score_window(lake, replace(scorer, session_idle=timedelta()), now, "run")
    assert calls == [ids(1), ids(1, 2)]


@pytest.mark.parametrize(
    "verdicts",
    [(True, None), (None, True), (None, None), (ValueError(), True), (True, ValueError()), (None, ValueError())],
    ids=str,
)
def test_each_stage_of_a_session_is_judged_once_whatever_the_result(
    verdicts: tuple[Any, Any], lake: LakeResource
) -> None:
    def judge(session: list[Trace]) -> Any:
        verdict = verdicts[len(session) - 1]
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    calls: Calls = []
    scorer = scorer_of(calls, judge)
    for number in (1, 2):
        put(lake, at(number, number * MINUTE))
        for _ in range(2):
            score_window(lake, scorer, HOUR, "run")
    assert calls == [ids(1), ids(1, 2)]
    assert ledger_problems(lake, [scorer], HOUR) == []
    last = [row for row in rows(lake) if row["session_traces"] == 2]
    assert [row["error_code"] for row in last] == {True: [None], None: []}.get(verdicts[1], ["SCORER_ERROR"])


def test_a_run_with_fewer_traces_does_not_revert_a_session(lake: LakeResource) -> None:
    put(lake, at(1, MINUTE))
    scorer = scorer_of([])
    earlier = lake.version(AGENT_TRACES)
    put(lake, at(2, 2 * MINUTE))
    score_window(lake, scorer, HOUR, "run")
    assert trace_states(lake, scorer, HOUR, earlier).where("due").count() == 0


# Hours, days, and longer times


@pytest.mark.parametrize("gap", [50 * MINUTE, 20 * HOURS, SPAN - MINUTE])
def test_hourly_runs_follow_a_session_across_hours_and_days(gap: timedelta, lake: LakeResource) -> None:
    put(lake, at(1, 30 * MINUTE), at(2, 30 * MINUTE + gap))
    calls: Calls = []
    scorer = scorer_of(calls)
    score_window(lake, scorer, hour_of(30 * MINUTE + gap), "run")
    assert calls == [ids(1, 2)]
    assert judged(lake) == {trace_id(1): 2}
    assert ledger_problems(lake, [scorer], HOUR) == []
    score_window(lake, scorer, HOUR, "run")
    assert len(calls) == 1


def test_traces_further_apart_than_the_span_are_another_session(lake: LakeResource) -> None:
    put(lake, at(1, timedelta()), at(2, MINUTE), at(3, SPAN + MINUTE), at(4, SPAN + 2 * MINUTE))
    calls: Calls = []
    score_window(lake, scorer_of(calls), Window(START, START + SPAN + HOURS), "run")
    assert calls == [ids(1, 2), ids(3, 4)]


@pytest.mark.parametrize("every", [DAY, 3 * DAY, SPAN - MINUTE])
def test_an_endless_session_is_judged_by_its_first_span_in_any_order_of_runs(
    every: timedelta, lake: LakeResource
) -> None:
    offsets = [number * every for number in range(20 * DAY // every)]
    put(lake, *(at(number, offset) for number, offset in enumerate(offsets)))
    calls: Calls = []
    scorer = scorer_of(calls)
    length = sum(offset < SPAN for offset in offsets)
    score_window(lake, scorer, EVER, "run")
    assert calls == [ids(*range(length))]
    for offset in offsets[::4]:
        score_window(lake, scorer, hour_of(offset), "run")
    score_window(lake, scorer, Window(START, START + 12 * DAY), "run")
    assert len(calls) == 1
    assert ledger_problems(lake, [scorer], EVER) == []
    assert totals(lake) == {"archived": len(offsets), "filtered_out": len(offsets) - 1, "eligible": 1, "scored": 1}


SESSIONS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("12"), st.integers(0, 15 * 24 * 4)), min_size=1, max_size=14
)


def expected_sessions(traces: list[Trace]) -> list[list[str]]:
    """The sessions by definition, computed trace by trace."""
    sessions: list[list[Trace]] = []
    latest: dict[tuple[str | None, str], list[Trace]] = {}
    previous: dict[tuple[str | None, str], int] = {}
    span_ms = SPAN // timedelta(milliseconds=1)
    for trace in sorted(traces, key=lambda trace: (trace.info.request_time, trace.info.trace_id)):
        key = (trace.info.experiment_id, trace.info.trace_metadata["mlflow.trace.session"])
        started_ms = trace.info.request_time
        if key not in previous or started_ms - previous[key] >= span_ms:
            latest[key] = []
            sessions.append(latest[key])
        previous[key] = started_ms
        if not latest[key] or started_ms - latest[key][0].info.request_time < span_ms:
            latest[key].append(trace)
    return sorted([trace.info.trace_id for trace in session] for session in sessions)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=SESSIONS, days=st.sampled_from([1, 2, 9, 30]))
def test_any_sessions_are_each_judged_once_however_time_is_split_into_runs(
    spark: SparkResource, tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, str, int]], days: int
) -> None:
    lake = LakeResource(location=str(tmp_path_factory.mktemp("lake")), spark=spark)
    traces = [at(number, quarter * 15 * MINUTE, *where) for number, (*where, quarter) in enumerate(made)]
    put(lake, *traces)
    calls: Calls = []
    scorer = scorer_of(calls)
    starts = sorted({day - day % days for day in (quarter // 96 for *_, quarter in made)})
    for start in starts:
        score_window(lake, scorer, Window(START + start * DAY, START + (start + days) * DAY), "run")
    assert sorted(calls) == expected_sessions(traces)
    assert ledger_problems(lake, [scorer], EVER) == []


# Late traces


@pytest.mark.parametrize("offset", [15 * MINUTE, 90 * MINUTE, 150 * MINUTE])
def test_a_late_trace_leads_to_a_new_assessment(offset: timedelta, lake: LakeResource) -> None:
    put(lake, at(1, 10 * MINUTE), at(2, 20 * MINUTE), at(3, 2 * HOURS + 10 * MINUTE))
    calls: Calls = []
    scorer = scorer_of(calls)
    for hour in range(3):
        score_window(lake, scorer, hour_of(hour * HOURS), "run")
    put(lake, at(4, offset))
    score_window(lake, scorer, hour_of(offset), "late")
    [row] = rows(lake)
    assert calls[:-1] == [ids(1, 2, 3)]
    assert sorted(calls[-1]) == ids(1, 2, 3, 4)
    assert (row["trace_id"], row["session_traces"], row["dagster_run_id"]) == (trace_id(1), 4, "late")
    assert ledger_problems(lake, [scorer], Window(START, START + 3 * HOURS)) == []


def test_a_late_first_trace_has_its_own_row(lake: LakeResource) -> None:
    put(lake, at(2, 130 * MINUTE), at(3, 140 * MINUTE))
    calls: Calls = []
    scorer = scorer_of(calls, priced)
    score_window(lake, scorer, hour_of(2 * HOURS), "run")
    [old] = rows(lake)
    put(lake, at(1, 10 * MINUTE))
    score_window(lake, scorer, HOUR, "late")
    found = {row["trace_id"]: row for row in rows(lake)}
    assert calls == [ids(2, 3), ids(1, 2, 3)]
    assert found.keys() == set(ids(1, 2))
    assert found[trace_id(2)] == old
    assert found[trace_id(1)]["session_traces"] == 3
    put(lake, at(4, 150 * MINUTE))
    score_window(lake, scorer, hour_of(2 * HOURS), "goes on")
    assert calls[2:] == [ids(1, 2, 3, 4)]
    assert judged(lake) == {trace_id(1): 4, trace_id(2): 2}
    window = Window(START, START + 3 * HOURS)
    update_ledger(lake, [scorer], window)
    assert totals(lake) == {"archived": 4, "filtered_out": 2, "eligible": 2, "scored": 2}
    assert ledger_problems(lake, [scorer], window) == []


def test_a_pending_session_is_not_pending_after_a_late_first_trace_was_scored(lake: LakeResource) -> None:
    put(lake, at(2, 130 * MINUTE))
    scorer = scorer_of([])
    update_ledger(lake, [scorer], hour_of(2 * HOURS))
    assert totals(lake)["pending"] == 1
    put(lake, at(1, 10 * MINUTE))
    score_window(lake, scorer, HOUR, "late")
    assert totals(lake) == {"archived": 2, "filtered_out": 1, "eligible": 1, "scored": 1}
    assert ledger_problems(lake, [scorer], Window(START, START + 3 * HOURS)) == []


# Order, retries, budgets, kills


def test_newest_first_starts_with_the_newest_hour(lake: LakeResource) -> None:
    put(lake, at(1, MINUTE, "s1"), at(9, 3 * HOURS + MINUTE, "s1"), at(2, 2 * HOURS, "s2"), at(3, 3 * HOURS, "s3"))
    calls: Calls = []
    window = Window(START + HOURS, START + 4 * HOURS)
    score_window(lake, scorer_of(calls), window, "run", newest_first=True)
    assert calls == [ids(3), ids(2), ids(1, 9)]


def unlucky(session: list[Trace]) -> int:
    raise ValueError(f"cannot judge {len(session)}")


def test_a_retry_judges_only_failed_sessions(lake: LakeResource) -> None:
    put(lake, at(1, MINUTE), at(2, 2 * MINUTE), at(3, 3 * MINUTE, "t"))
    score_window(lake, scorer_of([], lambda session: unlucky(session) if len(session) == 2 else 1), HOUR, "run")
    assert totals(lake) == {"archived": 3, "filtered_out": 1, "eligible": 2, "scored": 1, "failed": 1}
    calls: Calls = []
    scorer = scorer_of(calls)
    score_window(lake, scorer, HOUR, "again")
    assert calls == []
    score_window(lake, scorer, HOUR, "again", retry_failed=True)
    assert calls == [ids(1, 2)]
    assert totals(lake) == {"archived": 3, "filtered_out": 1, "eligible": 2, "scored": 2}


def test_a_retry_waits_until_a_failed_session_is_quiet(lake: LakeResource) -> None:
    window = archive_now(lake, just_now(1, 90 * MINUTE))
    score_window(lake, scorer_of([], unlucky), window, "run")
    archive_now(lake, just_now(2, MINUTE))
    calls: Calls = []
    scorer = scorer_of(calls)
    score_window(lake, scorer, window, "again", retry_failed=True)
    assert calls == []
    score_window(lake, replace(scorer, session_idle=timedelta()), window, "again", retry_failed=True)
    assert calls == [ids(1, 2)]


def test_a_failure_on_a_trace_that_is_no_longer_first_is_not_retried(lake: LakeResource) -> None:
    put(lake, at(2, 30 * MINUTE))
    score_window(lake, scorer_of([], unlucky), HOUR, "run")
    put(lake, at(1, MINUTE))
    calls: Calls = []
    scorer = scorer_of(calls)
    for _ in range(2):
        score_window(lake, scorer, HOUR, "again", retry_failed=True)
    assert calls == [ids(1, 2)]
    assert totals(lake) == {"archived": 2, "eligible": 2, "scored": 1, "failed": 1}
    assert ledger_problems(lake, [scorer], HOUR) == []


def test_an_exhausted_budget_leaves_quiet_sessions_over_budget_and_others_pending(lake: LakeResource) -> None:
    quiet = [just_now(number, (200 - number) * MINUTE, session=f"s{number}") for number in range(5)]
    window = archive_now(lake, *quiet, just_now(9, MINUTE))
    calls: Calls = []
    scorer = scorer_of(calls, budget=Budget(max_traces_per_hour=2))
    counts = score_window(lake, scorer, window, "run")
    assert (counts.scored, len(calls)) == (2, 2)
    assert counts.over_budget.startswith("2 traces of")
    assert totals(lake) == {"archived": 6, "eligible": 6, "scored": 2, "over_budget": 3, "pending": 1}
    assert ledger_problems(lake, [scorer], window) == []
    score_window(lake, replace(scorer, budget=Budget()), window, "more")
    assert sorted(calls) == [ids(number) for number in range(5)]
    assert totals(lake) == {"archived": 6, "eligible": 6, "scored": 5, "pending": 1}


class Killed(BaseException):
    """Ends a run in the middle."""


def test_a_run_that_ends_between_commits_is_continued(lake: LakeResource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "COMMIT_RESULTS", 3)
    put(lake, *(at(number, number * MINUTE, f"s{number % 10}") for number in range(20)))
    calls: Calls = []
    scorer = scorer_of(calls)

    def end(counts: ScoreCounts) -> None:
        raise Killed

    with pytest.raises(Killed):
        score_window(lake, scorer, HOUR, "run", on_progress=end)
    assert len(calls) == 3
    score_window(lake, scorer, HOUR, "again")
    assert sorted(calls) == [ids(number, number + 10) for number in range(10)]
    assert ledger_problems(lake, [scorer], HOUR) == []


# A judge of MLflow


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelDouble]:
    with serving(monkeypatch) as double:
        double.answer = lambda prompt: {"result": "unresolved", "rationale": "asked twice"}
        yield double


def test_a_judge_of_conversations_sees_whole_sessions_and_counts_each_attempt(
    lake: LakeResource, model: ModelDouble
) -> None:
    [scorer] = load_scorers(
        [
            ScorerSettings(
                name="frustration",
                builtin="UserFrustration",
                model="openai:/gpt-4.1-mini",
                sample_rate=1.0,
                usd_per_million_input_tokens=2,
                usd_per_million_output_tokens=8,
            )
        ]
    )
    assert scorer.session_idle == 30 * MINUTE
    put(lake, at(1, MINUTE), at(2, 2 * MINUTE), at(3, 3 * MINUTE, "other"))
    assert score_window(lake, scorer, HOUR, "run").scored == 2
    put(lake, at(4, 40 * MINUTE))
    assert score_window(lake, scorer, HOUR, "again").scored == 1
    assert len(model.requests) == 3
    last = model.requests[-1].prompt
    places = [last.index(f"{kind} {number}") for number in (1, 2, 4) for kind in ("question", "answer")]
    assert places == sorted(places)
    assert "question 3" not in last
    found = {row["trace_id"]: row for row in rows(lake)}
    first, other = found[trace_id(1)], found[trace_id(3)]
    assert (first["value"], first["rationale"], first["source_type"]) == ('"unresolved"', "asked twice", "LLM_JUDGE")
    assert (first["session_traces"], other["session_traces"]) == (3, 1)
    input_tokens, output_tokens = model.tokens
    assert first["input_tokens"] + other["input_tokens"] == input_tokens
    assert first["output_tokens"] + other["output_tokens"] == output_tokens
    assert first["cost_usd"] + other["cost_usd"] == pytest.approx((2 * input_tokens + 8 * output_tokens) / 1e6)
    assert ledger_problems(lake, [scorer], HOUR) == []
