"""Code scorers in worker processes: whatever one does to its process costs only its trace."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from monitoring_pipeline.errors import EngineError
from monitoring_pipeline.resources.rows import conform
from monitoring_pipeline.scoring import isolation
from monitoring_pipeline.scoring.isolation import IsolatedScorer
from monitoring_pipeline.scoring.limits import cores
from monitoring_pipeline.scoring.metering import Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.runner import PendingTrace, assess
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.tables import ASSESSMENTS
from monitoring_pipeline.text import secrets
from monitoring_pipeline_tests.scoring.made import made_trace

ODD = "monitoring_pipeline_tests.odd_scorers"
HOUR = datetime.fromisoformat("2026-01-01T00:00:00+00:00")


def loaded(name: str, timeout_seconds: float = 30, **params: Any) -> ConfiguredScorer:
    entry = ScorerSettings(name="it", scorer=f"{ODD}:{name}", params=params, timeout_seconds=timeout_seconds)
    (scorer,) = load_scorers([entry])
    return scorer


def pending(number: int = 1) -> PendingTrace:
    trace = made_trace(number)
    return PendingTrace(trace.info.trace_id, HOUR, "1", (trace.to_json(),), content_digest="c")


def error_of(row: dict[str, Any]) -> tuple[str, str]:
    """The error of a row of `assessments`, which has a value for each of its columns."""
    conform(ASSESSMENTS, pa.Table.from_pylist([row], schema=ASSESSMENTS.columns))
    return row["error_code"], row["error_message"]


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.parametrize("name", ["even", "nothing", "word", "broken"])
def test_a_worker_returns_the_same_row_as_this_process(name: str) -> None:
    scorer = replace(loaded(name), sample_rate=0.25, version=3)
    with IsolatedScorer(scorer, "run") as isolated:
        there = [isolated(pending(number)) for number in (2, 5)]
    here = [assess(scorer, pending(number), "run", Meter(scorer.limits)) for number in (2, 5)]

    def timeless(results: list[tuple[dict[str, Any], bool]]) -> list[Any]:
        return [
            ({k: v for k, v in row.items() if k not in ("assessed_at", "duration_ms")}, applies)
            for row, applies in results
        ]

    assert timeless(there) == timeless(here)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("exit", ("SCORER_CRASHED", "the scorer's process ended with exit code 3")),
        ("kill", ("SCORER_CRASHED", "the scorer's process was ended by SIGKILL")),
        ("close", ("SCORER_CRASHED", "the scorer's process ")),
        ("hang", ("SCORER_TIMEOUT", "no result within timeout_seconds = 0.5")),
        ("interrupt", ("SCORER_ERROR", "KeyboardInterrupt")),
        ("fill", ("SCORER_ERROR", "MemoryError")),
    ],
)
def test_harm_to_its_process_is_an_error_of_its_trace(how: str, error: tuple[str, str]) -> None:
    scorer = loaded("crashing", timeout_seconds=0.5, how=how, ends_with="1")
    with IsolatedScorer(scorer, "run") as isolated:
        before, harmed, after = [isolated(pending(number)) for number in (2, 1, 3)]
    code, message = error_of(harmed[0])
    assert (code, message[: len(error[1])]) == error
    assert (before[0]["score"], after[0]["score"]) == (1.0, 1.0)
    assert harmed[0]["content_digest"] == "c"


def test_what_a_scorer_has_started_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "child"
    with IsolatedScorer(loaded("with_child", timeout_seconds=1, file=str(file)), "run") as isolated:
        row, _ = isolated(pending())
    assert row["error_code"] == "SCORER_TIMEOUT"
    child = int(file.read_text())
    deadline = time.monotonic() + 10
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_leaving_the_context_ends_the_calls_under_way() -> None:
    rows = []
    started = time.monotonic()
    with IsolatedScorer(loaded("crashing", how="hang"), "run") as isolated:
        thread = threading.Thread(target=lambda: rows.append(isolated(pending())))
        thread.start()
        time.sleep(0.3)
    thread.join()
    assert time.monotonic() - started < 20
    assert len(rows) == 1


def test_the_output_of_a_scorer_is_shown_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOUD_TOKEN", "sk-very-secret-words")
    secrets.cache_clear()
    isolation._workers().close()  # the next one has this environment
    isolation._started.cache_clear()
    with IsolatedScorer(loaded("loud"), "run") as isolated:
        isolated(pending())
        shown = capsys.readouterr().err
        isolated(pending(2))
    secrets.cache_clear()
    assert shown.startswith(f"scorer it, trace {pending().trace_id}: ")
    assert shown.endswith("the end\n")
    assert len(shown) < 21_000
    assert "sk-very-secret-words" not in shown + capsys.readouterr().err


def test_a_file_that_changed_since_it_was_loaded_is_refused() -> None:
    scorer = replace(loaded("even"), digest="0123456789abcdef")
    with (
        IsolatedScorer(scorer, "run") as isolated,
        pytest.raises(EngineError, match=r"digest \w+, not 0123456789abcdef"),
    ):
        isolated(pending())


def test_workers_are_used_again_and_no_more_are_kept_than_cores() -> None:
    with IsolatedScorer(loaded("even"), "run") as isolated:
        threads = [threading.Thread(target=isolated, args=(pending(number),)) for number in range(2 * cores())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    idle = [*isolation._workers()._idle]
    assert 1 <= len(idle) <= cores()
    with IsolatedScorer(loaded("word"), "run") as isolated:
        isolated(pending())
    assert isolation._workers()._idle == idle


def test_a_template_that_was_killed_is_named_and_replaced() -> None:
    with IsolatedScorer(loaded("even"), "run") as isolated:
        isolated(pending())
        os.kill(isolation._workers()._template._process.pid, signal.SIGKILL)
        isolation._workers()._template._process.wait()
        assert isolated(pending())[0]["error_code"] is None


def test_threads_that_come_first_together_share_a_template() -> None:
    isolation._workers().close()
    isolation._started.cache_clear()
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(isolation._workers())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1
