"""Scorers for the tests of runs: with figures that are easy to tell, and some that go wrong."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from mlflow.entities import Trace
from mlflow.genai.scorers import scorer


@scorer
def number(outputs: Any) -> int:
    """The number of the trace, in its answer."""
    return int(re.findall(r"\d+", str(outputs))[0])


@scorer
def even(trace: Trace) -> bool:
    """Whether the trace's number is even; raises for numbers that 5 divides."""
    found = int(trace.info.trace_id.removeprefix("tr-"), 16)
    if found % 5 == 0:
        raise ValueError("five divides it")
    return found % 2 == 0


@scorer
def nothing(outputs: Any) -> None:
    """Nothing to say."""
    return


@scorer
def broken(outputs: Any) -> bool:
    """Raises for every trace."""
    raise KeyError("no such field: citations")


@scorer
def word(outputs: Any) -> str:
    """A value that is no score."""
    return "blue"


@scorer
def length(session: list[Trace]) -> int:
    """How many traces the session has."""
    return len(session)


@scorer
def deadly(outputs: Any) -> bool:
    """Kills the process that runs it, as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    return True


@scorer
def telling(trace: Trace, marker: str, wait_ms: float) -> bool:
    """As `even`, slowly, and with a file that tells that it has begun."""
    Path(marker).touch()
    time.sleep(wait_ms / 1000)
    return int(trace.info.trace_id.removeprefix("tr-"), 16) % 2 == 0
