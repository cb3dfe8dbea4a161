"""Repeats a call that may succeed on another attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, wait_random_exponential
from tenacity.stop import StopBaseT

T = TypeVar("T")


def retried(
    call: Callable[[], T],
    when: Callable[[BaseException], bool],
    stop: StopBaseT,
    first_wait_s: float = 0.5,
    longest_wait_s: float = 30.0,
) -> T:
    """Return the result of `call`, repeated while it fails with an error for which `when` is true.

    The pauses are random and grow, from up to `first_wait_s` to up to `longest_wait_s`. When `stop` ends the attempts,
    the last error is raised.
    """
    wait = wait_random_exponential(multiplier=first_wait_s, max=longest_wait_s)
    return Retrying(retry=retry_if_exception(when), stop=stop, wait=wait, reraise=True)(call)
