"""Budgets of a scorer: dollars per day and traces per hour, whatever answers cost and whoever else spends."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from mlflow.entities import Expectation
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring import budgets, builtins, runner
from monitoring_pipeline.scoring.budgets import Purse, ceiling
from monitoring_pipeline.scoring.coverage import ledger_problems, update_ledger
from monitoring_pipeline.scoring.limits import Budget, Limits
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import ScoreCounts, score_window
from monitoring_pipeline.scoring.runner import PendingTrace, Spent, assess
from monitoring_pipeline.tables import ASSESSMENTS, NOT_APPLICABLE, SCORER_COVERAGE
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests import forks
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace, number_in
from monitoring_pipeline_tests.scoring.model_double import GARBLED, KEY, OK, ModelDouble, serving
from monitoring_pipeline_tests.scoring.test_builtins import JUDGES, load
from monitoring_pipeline_tests.sources.stores import START

WINDOW = Window(START, START + timedelta(hours=1))
TRACES = 60
# Days in the past, so that files, which are written now, are never older than the day of a test's clock.
TODAY = datetime.now(UTC).replace(hour=10, minute=30) - timedelta(days=20)
# Prices well above rounding errors: a tenth of a cent per input token, four tenths per output token.
USD_IN, USD_OUT = 0.001, 0.004
PRICE = {"usd_per_million_input_tokens": USD_IN * 1e6, "usd_per_million_output_tokens": USD_OUT * 1e6}
LONG_ANSWER = {"result": "yes", "rationale": "x" * 800}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelDouble]:
    with serving(monkeypatch) as double:
        # As expensive as possible: a token per byte, and long answers.
        double.tokens_of = lambda text: len(text.encode())
        double.answer = lambda prompt: LONG_ANSWER
        yield double


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the time that budgets and results use; TODAY at first."""

    def show(moment: datetime) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return moment

        for module in (budgets, runner):
            monkeypatch.setattr(module, "datetime", Clock)

    show(TODAY)
    return show


def safe(**values: Any) -> ConfiguredScorer:
    return load("Safety", **{**PRICE, **values})


def archive_made(lake: LakeResource, window: Window = WINDOW, first: int = 0, count: int = TRACES) -> None:
    archive_traces(lake, window, [made_trace(number) for number in range(first, first + count)])


def spent_usd(model: ModelDouble, first: int = 0) -> float:
    """The dollars that the model charges for all its answers, or for answers from request `first` on."""
    requests = model.requests[first:]
    return sum(each.input_tokens * USD_IN + each.output_tokens * USD_OUT for each in requests)


def one_answer_usd(model: ModelDouble) -> float:
    """The cost of judging one trace."""
    trace = made_trace(0)
    pending = PendingTrace(trace.info.trace_id, START, "1", (trace.to_json(),))
    row, _ = assess(safe(), pending, "probe", Meter(Limits()))
    model.requests.clear()
    return row["cost_usd"]


def ledger(lake: LakeResource, *columns: str, name: str = "judge") -> tuple[int, ...]:
    lines = lake.read_columns(SCORER_COVERAGE, WINDOW, "scorer", *columns).to_pylist()
    return tuple(sum(line[column] for line in lines if line["scorer"] == name) for column in columns)


def test_a_days_budget_is_kept_and_later_days_finish(
    lake: LakeResource, model: ModelDouble, clock: Callable[[datetime], None]
) -> None:
    archive_made(lake)
    cap = TRACES * one_answer_usd(model) / 3
    scorer = safe(max_usd_per_day=cap)
    done = days = 0
    while done < TRACES:
        clock(TODAY + timedelta(days=days))
        days += 1
        before = len(model.requests)
        counts = score_window(lake, scorer, WINDOW, f"day {days}")
        done += counts.scored
        assert 0 < spent_usd(model, before) <= cap
        assert ledger(lake, "scored", "over_budget", "pending") == (done, TRACES - done, 0)
        assert ledger_problems(lake, [scorer], WINDOW) == []
        over_budget = "" if done == TRACES else f"${spent_usd(model, before):.4f} of max_usd_per_day = {cap:g}"
        assert counts.over_budget == over_budget
        assert done == TRACES or spent_usd(model, before) > 0.7 * cap  # used up, except for less than a ceiling
        request_count = len(model.requests)
        assert score_window(lake, scorer, WINDOW, "the same day") == ScoreCounts(over_budget=over_budget)
        assert len(model.requests) == request_count
        update_ledger(lake, [scorer], WINDOW)
        assert ledger(lake, "over_budget", "pending") == (TRACES - done, 0)
    assert 4 <= days <= 6
    assert Counter(number_in(request.prompt) for request in model.requests) == dict.fromkeys(range(TRACES), 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("clock")
def test_answers_of_any_size_never_exceed_the_budget(seed: int, lake: LakeResource, model: ModelDouble) -> None:
    chance = random.Random(seed)
    sizes = [int(900 * chance.random() ** chance.choice([0.2, 1, 5])) for _ in range(TRACES)]
    model.answer = lambda prompt: {"result": "yes", "rationale": "x" * sizes[number_in(prompt)]}
    fates = [chance.choice([OK, OK, "500", GARBLED]) for _ in range(10 * TRACES)]
    model.fate = lambda number, prompt: fates[number]
    archive_made(lake)
    cap = chance.uniform(10, 120)
    counts = score_window(lake, safe(max_usd_per_day=cap, concurrency=chance.randint(1, 12)), WINDOW, "run")
    assert counts.over_budget
    assert 0 < spent_usd(model) <= cap
    assert f"${spent_usd(model):.4f} of " in counts.over_budget
    assert ledger(lake, "over_budget") == (TRACES - counts.seen,)


@pytest.mark.usefixtures("clock")
def test_a_judge_with_a_request_per_chunk_keeps_its_budget(lake: LakeResource, model: ModelDouble) -> None:
    archive_traces(lake, WINDOW, [made_trace(number, retrieved=[["a page"] * 8]) for number in range(10)])
    cap = 300.0
    counts = score_window(lake, load("RetrievalRelevance", **PRICE, sample_rate=1, max_usd_per_day=cap), WINDOW, "run")
    assert counts.over_budget
    assert 8 * counts.scored == len(model.requests) > 0
    assert spent_usd(model) <= cap


@pytest.mark.usefixtures("clock")
def test_a_budget_below_one_ceiling_sends_no_request(lake: LakeResource, model: ModelDouble) -> None:
    archive_made(lake, count=5)
    assert score_window(lake, safe(max_usd_per_day=0.01), WINDOW, "run").over_budget
    assert model.requests == []
    assert ledger(lake, "over_budget") == (5,)


@pytest.mark.usefixtures("clock")
def test_all_digests_of_a_scorer_spend_from_one_budget(lake: LakeResource, model: ModelDouble) -> None:
    archive_made(lake)
    cap = TRACES * one_answer_usd(model) / 2
    first = safe(max_usd_per_day=cap, sample_rate=0.3)
    assert score_window(lake, first, WINDOW, "run").over_budget == ""
    other = safe(max_usd_per_day=cap, params={"description": "another"})
    assert other.digest != first.digest
    assert score_window(lake, other, WINDOW, "run").over_budget
    assert 0.7 * cap < spent_usd(model) <= cap
    request_count = len(model.requests)
    unrelated = safe(name="unrelated", max_usd_per_day=cap)
    score_window(lake, unrelated, WINDOW, "run")
    assert spent_usd(model, request_count) > 0.7 * cap
    lake.maintain(ASSESSMENTS)
    assert str(Purse(lake, first)) == str(Purse(lake, other)) != str(Purse(lake, unrelated))
    assert str(Purse(lake, first)).startswith(f"${spent_usd(model) - spent_usd(model, request_count):.4f} of ")


def test_the_cost_of_an_error_is_counted_once(
    lake: LakeResource, model: ModelDouble, clock: Callable[[datetime], None]
) -> None:
    archive_made(lake, count=20)
    one = one_answer_usd(model)
    model.fate = lambda number, prompt: GARBLED
    score_window(lake, safe(), WINDOW, "all fail")
    errors = spent_usd(model)
    most = ceiling(safe(), 100).cost_usd
    assert most is not None
    assert errors > 2 * most
    # Enough for errors and scores, but not if errors were counted again when they are replaced.
    scorer = safe(max_usd_per_day=errors + 20 * one + 1.5 * most, concurrency=1)
    model.fate = lambda number, prompt: OK
    clock(TODAY + timedelta(minutes=1))
    counts = score_window(lake, scorer, WINDOW, "retry", retry_failed=True)
    assert (counts.scored, counts.over_budget) == (20, "")
    rows = lake.read_columns(ASSESSMENTS, WINDOW, "cost_usd").to_pylist()
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(spent_usd(model), abs=1e-9)
    assert str(Purse(lake, scorer)).startswith(f"${spent_usd(model):.4f} of ")


@pytest.mark.parametrize("answers", [True, None])
def test_an_hours_budget_is_kept_and_later_hours_finish(
    answers: bool | None, lake: LakeResource, clock: Callable[[datetime], None]
) -> None:
    archive_made(lake, count=20)
    calls: list[str] = []

    @as_scorer(timeout=0)
    def judge(trace: Any) -> bool | None:
        calls.append(trace.info.trace_id)
        return answers

    scorer = ConfiguredScorer("judge", judge, "d" * 16, 1.0, None, budget=Budget(max_traces_per_hour=8))
    for hour, total in enumerate([8, 16, 20]):
        clock(TODAY + timedelta(hours=hour))
        for _ in range(2):
            counts = score_window(lake, scorer, WINDOW, "run")
            assert len(calls) == len(set(calls)) == total
            assert ledger(lake, "pending", "over_budget") == (0, 20 - total)
            assert ledger_problems(lake, [scorer], WINDOW) == []
            assert counts.over_budget == ("" if total == 20 else "8 traces of max_traces_per_hour = 8")
    table = NOT_APPLICABLE if answers is None else ASSESSMENTS
    assert lake.read_columns(table, WINDOW, "trace_id").num_rows == 20
    # Each hour's traces are those that a lower sample rate would have, not the first of the day.
    assert calls == sorted(calls, key=lambda trace_id: hashlib.sha256(f"{trace_id}:judge".encode()).digest())


@pytest.mark.usefixtures("clock")
def test_both_budgets_are_kept_together(lake: LakeResource, model: ModelDouble) -> None:
    archive_made(lake, count=30)
    cap = 10 * one_answer_usd(model)
    for scorer, least, most in [
        (safe(max_usd_per_day=cap, max_traces_per_hour=3), 3, 3),
        (safe(name="other", max_usd_per_day=cap, max_traces_per_hour=25), 7, 10),
    ]:
        before = len(model.requests)
        counts = score_window(lake, scorer, WINDOW, "run")
        assert least <= counts.scored == len(model.requests) - before <= most
        assert " of max_usd_per_day = " in counts.over_budget
        assert " traces of max_traces_per_hour = " in counts.over_budget


def test_only_results_written_since_are_read(lake: LakeResource, model: ModelDouble) -> None:
    nothing = lake.read_written_since(ASSESSMENTS, TODAY, "scorer", "cost_usd")
    assert (nothing.num_rows, nothing.column_names) == (0, ["scorer", "cost_usd"])
    archive_made(lake, count=3)
    score_window(lake, safe(), WINDOW, "run")
    now = datetime.now(UTC)
    assert lake.read_written_since(ASSESSMENTS, now, "scorer").column("scorer").to_pylist() == ["judge"] * 3
    assert lake.read_written_since(ASSESSMENTS, now + timedelta(hours=2), "scorer").num_rows == 0


def _score_alone(location: str, scored: Window, address: str, cap: float, ready: Any) -> None:
    os.environ.update(OPENAI_API_KEY=KEY, OPENAI_API_BASE=address, MLFLOW_MODEL_CATALOG_URI="")
    lake = LakeResource(location=location, spark=SparkResource())
    scorer = safe(max_usd_per_day=cap)
    ready.wait(60)
    score_window(lake, scorer, scored, "run")


def test_two_processes_together_do_not_spend_more(lake: LakeResource, model: ModelDouble) -> None:
    halves = [Window(START + timedelta(hours=hour), START + timedelta(hours=hour + 1)) for hour in (0, 1)]
    for hour, half in enumerate(halves):
        archive_made(lake, half, first=3600 * hour)
    cap = TRACES * one_answer_usd(model) * 0.6
    context = forks.context()
    ready = context.Barrier(2)
    runs = [
        context.Process(target=_score_alone, args=(lake.location, half, model.address, cap, ready)) for half in halves
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(90)
    assert [run.exitcode for run in runs] == [0, 0]
    assert 0.7 * cap < spent_usd(model) <= cap
    assert all(lake.read_columns(SCORER_COVERAGE, half, "hour").num_rows for half in halves)
    assert ledger_problems(lake, [safe()], Window(halves[0].start, halves[1].end)) == []


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize("bytes_a_token", [1, 4])
def test_no_judge_exceeds_its_ceiling(name: str, bytes_a_token: int, model: ModelDouble) -> None:
    model.tokens_of = lambda text: len(text.encode()) // bytes_a_token
    if name == "UserFrustration":
        model.answer = lambda prompt: {**LONG_ANSWER, "result": "none"}
    scorer = load(name)
    labels = [Expectation(name="expected_response", value="Paris"), Expectation(name="guidelines", value=["be polite"])]
    answer = 'na\u00efve "quoted" \\ text\n\t\u2028' * 40
    pages = [["a page \u00e9" * 30] * 5, ["another"] * 3]
    traces = [made_trace(n, session="s", answer=answer, retrieved=pages, assessments=labels) for n in range(6)]
    if scorer.session_idle is None:
        traces = traces[:1]
    texts = tuple(trace.to_json() for trace in traces)
    shown = [f"{trace.info.request_preview}{trace.info.response_preview}" for trace in traces]
    prompt_bytes = sum(len(text.encode()) for text in (texts if builtins.reads_spans(scorer.scorer) else shown))
    pending = PendingTrace(traces[0].info.trace_id, START, "1", texts, prompt_bytes=prompt_bytes)
    row, _ = assess(scorer, pending, "run", Meter(Limits()))
    assert row["error_code"] is None
    calls = builtins.request_count(scorer.scorer, texts)
    most = ceiling(scorer, calls * prompt_bytes, calls)
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens
    assert 0 < row["input_tokens"] <= (most.input_tokens or 0)
    assert 0 < row["output_tokens"] <= (most.output_tokens or 0)
    assert 0 < row["cost_usd"] <= (most.cost_usd or 0.0)
    assert len(model.requests) == calls


def test_code_has_no_ceiling() -> None:
    assert ceiling(load("PIIDetection"), 1000) == Spent()


def test_a_judge_with_longer_answers_has_a_higher_ceiling() -> None:
    parameters = {"instructions": "Is {{ outputs }} polite?", "inference_params": {"max_completion_tokens": 5000}}
    assert ceiling(load("make_judge", params=parameters), 0, 2).output_tokens == 10_000
    assert ceiling(load("make_judge"), 0, 2).output_tokens == 2 * budgets.ANSWER_TOKENS


def test_two_runs_at_once_without_a_budget_judge_each_trace_once(lake: LakeResource, model: ModelDouble) -> None:
    archive_made(lake, count=20)
    with ThreadPoolExecutor(2) as runs:
        counts = list(runs.map(lambda run: score_window(lake, safe(), WINDOW, run), ["one", "two"]))
    assert len(model.requests) == 20
    assert sorted(count.scored for count in counts) == [0, 20]
