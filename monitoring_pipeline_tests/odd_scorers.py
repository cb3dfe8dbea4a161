"""Scorers for tests of runs: some have results that are easy to predict, some fail."""

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
    """The first number in the answer."""
    return int(re.findall(r"\d+", str(outputs))[0])


@scorer
def even(trace: Trace) -> bool:
    """Whether the trace's number is even; raises for multiples of 5."""
    found = int(trace.info.trace_id.removeprefix("tr-"), 16)
    if found % 5 == 0:
        raise ValueError("five divides it")
    return found % 2 == 0


@scorer
def nothing(outputs: Any) -> None:
    """Not applicable to any trace."""
    return


@scorer
def broken(outputs: Any) -> bool:
    """Raises for every trace."""
    raise KeyError("no such field: citations")


@scorer
def word(outputs: Any) -> str:
    """A value that is not a score."""
    return "blue"


@scorer
def length(session: list[Trace]) -> int:
    """The number of traces in the session."""
    return len(session)


@scorer
def deadly(outputs: Any) -> bool:
    """Kills its own process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return True


@scorer
def even_with_marker(trace: Trace, marker: str, wait_ms: float) -> bool:
    """Whether the trace's number is even, after a wait; creates the file `marker` when it starts."""
    Path(marker).touch()
    time.sleep(wait_ms / 1000)
    return int(trace.info.trace_id.removeprefix("tr-"), 16) % 2 == 0
