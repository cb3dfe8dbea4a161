"""A judge over many traces while its model is busy, fails, stalls or garbles: every trace has one result or error."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring import metering
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.tables import ASSESSMENTS, SCORER_COVERAGE
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace, number_in
from monitoring_pipeline_tests.scoring.model_double import (
    BROKEN,
    BUSY,
    CUT,
    GARBLED,
    MAYBE,
    OK,
    STALLS,
    TORN,
    ModelDouble,
)
from monitoring_pipeline_tests.scoring.test_builtins import load
from monitoring_pipeline_tests.sources.stores import START

TRACES = 1000
# Percentages of the answers; the rest succeed.
FATES = {BUSY: 10, BROKEN: 8, STALLS: 1, TORN: 2, GARBLED: 4, CUT: 3, MAYBE: 3}
USD_PER_INPUT_TOKEN, USD_PER_OUTPUT_TOKEN = 0.15e-6, 0.6e-6  # as gpt-4o-mini is listed
WINDOW = Window(START - timedelta(hours=1), START + timedelta(hours=2))
RATE_MS, LATE_MS = 3000, 1000


def unwell(seed: str) -> Any:
    """Fates that a trace's n-th request always has, in any order of requests."""
    tries: Counter[int] = Counter()
    lock = threading.Lock()
    fates = [fate for fate, share in FATES.items() for _ in range(share)]

    def fate(number: int, prompt: str) -> str:
        trace = number_in(prompt)
        with lock:
            tries[trace] += 1
            draw = int(sha256(f"{seed}:{trace}:{tries[trace]}".encode()).hexdigest(), 16) % 100
        return fates[draw] if draw < len(fates) else OK

    return fate


def answered(model: ModelDouble) -> Counter[int]:
    """The number of successful answers for a trace."""
    return Counter(number_in(request.prompt) for request in model.requests if request.fate == OK)


def rows(lake: LakeResource, scorer: ConfiguredScorer) -> list[dict[str, Any]]:
    columns = ("trace_id", "scorer_digest", "score", "error_code", "input_tokens", "output_tokens", "cost_usd")
    found = lake.read_columns(ASSESSMENTS, WINDOW, *columns).to_pylist()
    return [row for row in found if row["scorer_digest"] == scorer.digest]


def ledger(lake: LakeResource, *columns: str) -> tuple[int, ...]:
    lines = lake.read_columns(SCORER_COVERAGE, WINDOW, *columns).to_pylist()
    return tuple(sum(line[column] for line in lines) for column in columns)


def assert_paid_for(found: list[dict[str, Any]], model: ModelDouble) -> None:
    """Assert that the usage in the rows equals the model's own count."""
    tokens_in, tokens_out = model.tokens
    assert (sum(row["input_tokens"] for row in found), sum(row["output_tokens"] for row in found)) == model.tokens
    assert sum(row["cost_usd"] for row in found) == pytest.approx(
        tokens_in * USD_PER_INPUT_TOKEN + tokens_out * USD_PER_OUTPUT_TOKEN, abs=1e-9
    )


def test_every_trace_has_one_result_or_error_whatever_the_model_does(
    lake: LakeResource, model: ModelDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering, "MINUTE_MS", RATE_MS)
    model.fate, model.stall_seconds = unwell("first"), 3.0
    model.answer = lambda prompt: {"result": "yes", "rationale": "fine " * (number_in(prompt) % 20)}
    archive_traces(lake, WINDOW, [made_trace(number) for number in range(TRACES)])
    rate = 2 * TRACES // 5
    scorer = load("Safety", concurrency=8, requests_per_minute=rate, timeout_seconds=2, max_attempts=3)

    counts = score_window(lake, scorer, WINDOW, "run")
    found = rows(lake, scorer)
    assert len({row["trace_id"] for row in found}) == len(found) == TRACES
    codes = Counter(row["error_code"] for row in found)
    assert codes.keys() == {None, "MALFORMED_OUTPUT", "MODEL_UNAVAILABLE"}
    assert (counts.scored, counts.failed) == (codes[None], TRACES - codes[None])
    assert all((row["score"] == 1.0) == (row["error_code"] is None) for row in found)
    assert set(answered(model).values()) == {1}
    assert answered(model).total() == counts.scored
    malformed = sum(model.fates[fate] for fate in (GARBLED, CUT, MAYBE))
    assert codes["MALFORMED_OUTPUT"] == malformed
    assert ledger(lake, "eligible", "scored", "failed", "pending") == (TRACES, counts.scored, counts.failed, 0)
    assert ledger_problems(lake, [scorer], WINDOW) == []
    assert_paid_for(found, model)

    request_count = len(model.requests)
    score_window(lake, scorer, WINDOW, "again")
    assert len(model.requests) == request_count

    failed = {row["trace_id"] for row in found if row["error_code"]}
    model.fate = unwell("second")
    again = score_window(lake, scorer, WINDOW, "retry", retry_failed=True)
    retried = {number_in(request.prompt) for request in model.requests[request_count:]}
    assert {made_trace(number).info.trace_id for number in retried} == failed
    assert again.seen == counts.failed
    assert again.scored > 0
    assert set(answered(model).values()) == {1}
    found = rows(lake, scorer)
    assert len({row["trace_id"] for row in found}) == len(found) == TRACES
    assert sum(row["error_code"] is None for row in found) == counts.scored + again.scored == answered(model).total()
    assert ledger(lake, "scored", "failed") == (counts.scored + again.scored, again.failed)
    assert ledger_problems(lake, [scorer], WINDOW) == []
    assert_paid_for(found, model)

    assert model.most_within((RATE_MS - LATE_MS) / 1000) <= rate


def test_a_higher_rate_requests_only_the_added_traces(lake: LakeResource, model: ModelDouble) -> None:
    archive_traces(lake, WINDOW, [made_trace(number) for number in range(150)])
    fewer, more = load("Safety", sample_rate=0.1), load("Safety", sample_rate=0.3)
    assert fewer.digest == more.digest
    first = score_window(lake, fewer, WINDOW, "run").scored
    before = answered(model)
    assert 0 < first == before.total() < 150 * 0.2
    second = score_window(lake, more, WINDOW, "run").scored
    after = answered(model)
    assert second == after.total() - first > 0
    assert set(after.values()) == {1}
    assert before.keys() < after.keys()
    assert ledger(lake, "archived", "unsampled", "scored") == (150, 150 - first - second, first + second)
    assert ledger_problems(lake, [more], WINDOW) == []
    assert_paid_for(rows(lake, more), model)
    request_count = len(model.requests)
    score_window(lake, fewer, WINDOW, "run")
    assert len(model.requests) == request_count
    assert ledger_problems(lake, [fewer], WINDOW) == []


def test_another_model_judges_all_traces_again(lake: LakeResource, model: ModelDouble) -> None:
    archive_traces(lake, WINDOW, [made_trace(number) for number in range(20)])
    one, other = load("Safety"), load("Safety", model="openai:/gpt-4o")
    for scorer in (one, other):
        assert score_window(lake, scorer, WINDOW, "run").scored == 20
    assert set(answered(model).values()) == {2}
    prices = [sum(row["cost_usd"] for row in rows(lake, scorer)) for scorer in (one, other)]
    assert prices[1] > 10 * prices[0]
    assert ledger_problems(lake, [one, other], WINDOW) == []
