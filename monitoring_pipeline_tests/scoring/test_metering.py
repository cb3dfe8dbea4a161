"""Requests of judges: retries, counted usage, errors, and the rate limit that all processes share."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Feedback
from mlflow.exceptions import MlflowException
from mlflow.genai.judges.adapters import utils
from mlflow.genai.scorers import Safety

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.scoring import metering
from monitoring_pipeline.scoring.limits import Limits
from monitoring_pipeline.scoring.metering import Meter, RateLimit, meter_of
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import PendingTrace, Spent, assess
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.scoring.made import made_trace, number_in
from monitoring_pipeline_tests.scoring.model_double import (
    BROKEN,
    BUSY,
    CUT,
    DRIPS,
    GARBLED,
    KEY,
    MAYBE,
    NO_CHOICE,
    NO_RESULT,
    NOTHING,
    OK,
    PLAIN,
    STALLS,
    TORN,
    ModelDouble,
    most_within,
)
from monitoring_pipeline_tests.scoring.test_builtins import MODEL, load
from monitoring_pipeline_tests.sources.stores import START

ATTEMPTS = 3
LIMITS = Limits(timeout_seconds=0.6, max_attempts=ATTEMPTS)
WINDOW_MS = 2500
LATE_MS = 1500  # the possible delay between releasing a request and its arrival


def wait_again_and_again(file: Path, window_ms: int, rate: int, count: int) -> None:
    """Print the times at which a rate lets requests pass, in a process of `forks`."""
    metering.MINUTE_MS = window_ms
    limit = RateLimit(rate, file)
    times = []
    for _ in range(count):
        limit.wait()
        times.append(time.time())
    print(json.dumps(times))


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "MINUTE_MS", WINDOW_MS)


def judged(number: int = 1, scorer: ConfiguredScorer | None = None, meter: Meter | None = None) -> dict[str, Any]:
    """Safety's row on trace `number`."""
    trace = made_trace(number)
    pending = PendingTrace(trace.info.trace_id, START, "1", (trace.to_json(),))
    row, applies = assess(scorer or load("Safety"), pending, "run", meter or Meter(LIMITS))
    assert applies
    return row


def fated(model: ModelDouble, *fates: str) -> None:
    """The n-th request has the n-th of `fates`; all later requests have the last."""
    model.fate = lambda number, prompt: fates[min(number, len(fates) - 1)]


def gaps(model: ModelDouble) -> list[float]:
    """Seconds between one request and the next."""
    times = [request.arrived for request in model.requests]
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("fate", [BUSY, BROKEN, "408", "502", "503", "504", "529", STALLS, DRIPS, TORN])
def test_a_temporary_failure_is_retried_up_to_the_limit(fate: str, model: ModelDouble) -> None:
    fated(model, fate)
    row = judged()
    assert len(model.requests) == ATTEMPTS
    assert (row["error_code"], row["value"], row["score"]) == ("MODEL_UNAVAILABLE", None, None)
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (0, 0, 0.0)
    late = "no answer within 0.6 seconds"
    named = {STALLS: late, DRIPS: late, TORN: "no connection: "}
    assert named.get(fate, f"status {fate}: refused") in row["error_message"]


@pytest.mark.parametrize("fate", [BUSY, BROKEN, STALLS, TORN])
def test_an_answer_after_retries_is_a_score(fate: str, model: ModelDouble) -> None:
    fated(model, fate, fate, OK)
    row = judged()
    assert (row["score"], row["error_code"]) == (1.0, None)
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens != (0, 0)


@pytest.mark.parametrize("fate", ["400", "401", "403", "404", "422"])
def test_a_permanent_refusal_is_not_retried(fate: str, model: ModelDouble) -> None:
    fated(model, fate)
    row = judged()
    assert len(model.requests) == 1
    assert row["error_code"] == "MODEL_UNAVAILABLE"
    assert f"status {fate}: refused" in row["error_message"]


def test_a_refused_connection_is_reported(model: ModelDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:9/v1")
    row = judged()
    assert row["error_code"] == "MODEL_UNAVAILABLE"
    assert "no connection: " in row["error_message"]


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [("0.4", 0.4, 5), ("1000", 0.2, 5), (None, 0.0, 0.4), ("Wed, 21 Oct 2065 07:28:00 GMT", 0.0, 0.4)],
)
def test_retry_after_of_a_busy_model_is_respected(
    retry_after: str | None, least: float, most: float, model: ModelDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    if retry_after == "1000":
        monkeypatch.setattr(metering, "LONGEST_WAIT_SECONDS", 0.2)
    model.retry_after = retry_after
    fated(model, BUSY, OK)
    assert judged()["score"] == 1.0
    (gap,) = gaps(model)
    assert least <= gap < most


@pytest.mark.parametrize("fate", [GARBLED, MAYBE, PLAIN, NO_RESULT, NOTHING, NO_CHOICE, CUT])
def test_malformed_output_is_an_error_and_its_cost_is_counted(fate: str, model: ModelDouble) -> None:
    fated(model, fate)
    row = judged()
    assert len(model.requests) == 1
    assert (row["error_code"], row["value"], row["score"]) == ("MALFORMED_OUTPUT", None, None)
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens
    assert row["error_message"]
    assert (row["input_tokens"] > 0) == (fate != CUT)


def test_usage_of_earlier_attempts_is_added(model: ModelDouble) -> None:
    trace = made_trace(1)
    pending = PendingTrace(trace.info.trace_id, START, "1", (trace.to_json(),), spent=Spent(100, 10, 0.5))
    row, _ = assess(load("Safety"), pending, "run", Meter(LIMITS))
    tokens_in, tokens_out = model.tokens
    assert (row["input_tokens"], row["output_tokens"]) == (100 + tokens_in, 10 + tokens_out)
    assert row["cost_usd"] == pytest.approx(0.5 + tokens_in * 0.15e-6 + tokens_out * 0.6e-6, abs=1e-12)


def test_each_thread_counts_its_own_usage(model: ModelDouble) -> None:
    model.answer = lambda prompt: {"result": "yes", "rationale": "x" * 4 * number_in(prompt)}
    scorer = load("Safety")
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda number: judged(number, scorer), range(30)))
    output_tokens = {number_in(request.prompt): request.output_tokens for request in model.requests}
    assert [row["output_tokens"] for row in rows] == [output_tokens[number] for number in range(30)]
    assert len(set(output_tokens.values())) == 30


def test_a_judge_with_its_own_time_limit_is_metered_too(model: ModelDouble) -> None:
    fated(model, BUSY, OK)
    scorer = replace(load("Safety"), scorer=Safety(name="own", model=MODEL, timeout=30))
    row = judged(scorer=scorer)
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens != (0, 0)


@pytest.mark.parametrize("fate", ["400", "401", BROKEN, BUSY])
@pytest.mark.parametrize("key", [KEY, f"{KEY}\n", f" {KEY}", f"{KEY}\u2026"])
def test_no_secret_appears_in_errors_or_output(
    fate: str, key: str, model: ModelDouble, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    fated(model, fate)
    row = judged(scorer=load("Safety", params={"extra_headers": {"x-proxy-key": "pr0xy-s3cret"}}))
    assert row["error_code"] == "MODEL_UNAVAILABLE"
    output = repr(row) + "".join(capfd.readouterr())
    assert KEY not in output
    assert "pr0xy-s3cret" not in output


def test_mlflows_own_error_would_contain_the_key(model: ModelDouble) -> None:
    fated(model, "401")
    with pytest.raises(MlflowException, match=KEY):
        load("Safety").scorer.run(outputs="fine")


def test_outside_of_a_meter_mlflow_is_unchanged(model: ModelDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(utils, "_sleep_with_backoff", waited.append)
    fated(model, BUSY)
    with pytest.raises(MlflowException):
        load("Safety").scorer.run(outputs="fine")
    assert waited == list(range(10))  # MLflow's ten retries
    assert len(model.requests) == 11
    fated(model, OK)
    feedback = load("Safety").scorer.run(outputs="fine")
    assert isinstance(feedback, Feedback)
    assert feedback.value == "yes"
    assert (feedback.metadata or {})["mlflow.assessment.judgeInputTokens"] == model.tokens[0]


@pytest.mark.usefixtures("window")
def test_the_rate_limit_holds_across_threads_and_for_retries(model: ModelDouble, tmp_path: Path) -> None:
    model.retry_after = "0"
    fated(model, *[BUSY, BROKEN, OK] * 4, OK)
    meter = Meter(replace(LIMITS, max_attempts=20), RateLimit(6, tmp_path / "rate"))
    scorer = load("Safety")
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda number: judged(number, scorer, meter), range(10)))
    assert [row["score"] for row in rows] == [1.0] * 10
    assert len(model.requests) == 18
    assert model.most_within((WINDOW_MS - LATE_MS) / 1000) <= 6
    assert sum(gaps(model)) >= 2 * (WINDOW_MS - LATE_MS) / 1000


@pytest.mark.usefixtures("window")
def test_the_rate_limit_holds_right_after_a_restart(tmp_path: Path) -> None:
    before = RateLimit(5, tmp_path / "rate")
    started = time.monotonic()
    for _ in range(5):
        before.wait()
    assert time.monotonic() - started < WINDOW_MS / 1000  # earlier requests did not wait
    RateLimit(5, tmp_path / "rate").wait()
    assert time.monotonic() - started >= WINDOW_MS / 1000


def test_the_rate_limit_holds_across_processes(tmp_path: Path) -> None:
    window_ms, rate, each = WINDOW_MS, 5, 8
    arguments = (tmp_path / "rate", window_ms, rate, each)
    outputs = [tmp_path / "output-1", tmp_path / "output-2"]
    processes = [
        Fork(wait_again_and_again, arguments, tmp_path, os.environ, output, tmp_path / "errors") for output in outputs
    ]
    assert [process.wait(60) for process in processes] == [0, 0], (tmp_path / "errors").read_text()
    times = sorted(moment for output in outputs for moment in json.loads(output.read_text()))
    assert len(times) == 2 * each
    assert most_within(times, (window_ms - LATE_MS) / 1000) <= rate
    assert times[-1] - times[0] < 4 * window_ms / 1000  # three windows are enough; requests did not wait for each other


def test_a_rate_limit_belongs_to_one_scorer_in_one_lake(tmp_path: Path) -> None:
    limits = Limits(requests_per_minute=5)
    one = meter_of(str(tmp_path / "a"), "safe", limits).rate
    assert one is not None
    assert meter_of(str(tmp_path / "a"), "safe", replace(limits, concurrency=3)).rate is one
    others = [meter_of(str(tmp_path / lake), name, limits).rate for lake, name in [("a", "other"), ("b", "safe")]]
    assert one not in others
    assert meter_of(str(tmp_path / "a"), "safe", Limits()).rate is None


def test_the_last_request_shows_whether_the_model_was_reachable(model: ModelDouble) -> None:
    trace = made_trace(1, retrieved=[["one", "other"]])
    pending = PendingTrace(trace.info.trace_id, START, "1", (trace.to_json(),))
    fated(model, OK, BROKEN)
    row, _ = assess(load("RetrievalRelevance"), pending, "run", Meter(LIMITS))
    assert row["error_code"] == "MODEL_UNAVAILABLE"
    assert (row["input_tokens"], row["output_tokens"]) == model.tokens != (0, 0)
    assert len(model.requests) == 1 + ATTEMPTS


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_shared_folder_that_somebody_else_made_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"monitoring-pipeline-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs") if kind == "link" else folder.touch()
    with pytest.raises(MonitoringError, match="monitoring-pipeline"):
        metering.shared_file("lake", "scorer", "budget")


def test_a_shared_folder_is_for_its_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"monitoring-pipeline-{os.getuid()}").mkdir(mode=0o777)
    folder = metering.shared_file("lake", "scorer", "budget").parent
    assert folder.stat().st_mode & 0o777 == 0o700
