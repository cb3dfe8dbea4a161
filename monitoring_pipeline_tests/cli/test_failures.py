"""Errors that end a command: one line each, and the traceback where it helps."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa
import pytest
from mlflow.exceptions import RestException

from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.made_project import FROM, TO, MadeProject


class PanicException(BaseException):
    """As Rust's panics arrive in Python."""


def no_json() -> None:
    json.loads("<html>\nnginx</html>")


def rest() -> None:
    raise RestException({"error_code": "INTERNAL_ERROR", "message": "no\nanswer"})


def arrow() -> None:
    pa.array(["x"]).cast(pa.int64())


def wrong_type() -> None:
    "".join([1])  # type: ignore[list-item]


def panic() -> None:
    raise PanicException("No space left on device (os error 28)\n   0: <unknown>")


def secret() -> None:
    raise OSError("cannot reach https://someone:hunter2hunter2@example.test/ with 4f8e-top-secret")


RAISED: dict[Callable[[], None], str] = {
    no_json: "JSONDecodeError: Expecting value: line 1 column 1 (char 0);",
    rest: "RestException: INTERNAL_ERROR: no",
    arrow: "ArrowInvalid: Failed to parse string: 'x' as a scalar of type int64;",
    wrong_type: "TypeError: sequence item 0: expected str instance, int found;",
    panic: "PanicException: No space left on device (os error 28);",
}


@pytest.fixture
def call(made: MadeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.delenv("MONITORING_TRACEBACK", raising=False)
    call = calling(monkeypatch, capsys, "assess")
    return lambda *more: call("--from", FROM, "--to", TO, "--config", str(made.configure()), *more)


def raise_within(monkeypatch: pytest.MonkeyPatch, raising: Callable[[], None]) -> None:
    monkeypatch.setattr("monitoring_pipeline.scoring.on_demand.chosen_traces", lambda *arguments: raising())


@pytest.mark.parametrize("raising", RAISED, ids=lambda raising: raising.__name__)
def test_the_error_of_a_library_is_one_line(
    raising: Callable[[], None], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_within(monkeypatch, raising)
    called = call()
    assert called.code == 1
    [line] = called.err.splitlines()
    assert line.startswith(f"error: {RAISED[raising]}")
    assert line.endswith("MONITORING_TRACEBACK=1 shows where it comes from")


def test_the_traceback_of_any_error_can_be_had(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_within(monkeypatch, no_json)
    monkeypatch.setenv("MONITORING_TRACEBACK", "1")
    called = call()
    assert called.err.startswith("Traceback (most recent call last):")
    assert called.err.splitlines()[-1].startswith("error: JSONDecodeError: ")


def test_a_fault_of_this_package_has_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from monitoring_pipeline import text

    raise_within(monkeypatch, lambda: text.percent("high"))  # type: ignore[arg-type]
    called = call()
    assert called.code == 1
    assert called.err.startswith("Traceback (most recent call last):")
    assert called.err.splitlines()[-1].endswith("this is a fault of monitoring-pipeline, please report it")


def test_neither_line_nor_traceback_has_a_secret(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring_pipeline.text.secrets", lambda: ("4f8e-top-secret",))
    monkeypatch.setenv("MONITORING_TRACEBACK", "1")
    raise_within(monkeypatch, secret)
    raised = call().err
    assert "OSError: cannot reach" in raised
    assert "example.test/ with ***" in raised.splitlines()[-1]
    assert "4f8e" not in raised
    assert "hunter2" not in raised


def test_ctrl_c_and_the_end_of_a_command_are_no_errors(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> None:
        raise SystemExit(3)

    raise_within(monkeypatch, end)
    assert (call().code, call().err) == (3, "")
