"""Calls that are repeated, and the error that ends them."""

from __future__ import annotations

import pytest
from tenacity import stop_after_attempt

from monitoring_pipeline.retries import retried


class Failing:
    """Raises the errors, one per call, and then returns the number of calls."""

    def __init__(self, *errors: Exception):
        self.errors = [*errors]
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def tried(call: Failing, attempts: int = 3) -> int:
    is_passing = lambda error: isinstance(error, OSError)  # noqa: E731
    return retried(call, is_passing, stop_after_attempt(attempts), first_wait_s=0, longest_wait_s=0)


def test_a_passing_error_is_repeated() -> None:
    assert tried(Failing(OSError(), OSError())) == 3


def test_another_error_is_raised_at_once() -> None:
    call = Failing(ValueError("wrong"), OSError())
    with pytest.raises(ValueError, match="wrong"):
        tried(call)
    assert call.calls == 1


def test_the_last_error_is_raised_when_the_attempts_end() -> None:
    with pytest.raises(OSError, match="third"):
        tried(Failing(OSError("first"), OSError("second"), OSError("third")))
