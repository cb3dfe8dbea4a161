"""Scorers for tests of runs: some have results that are easy to predict, some fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
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
    """Kills the process that its worker works for, as the kernel does when memory runs out."""
    of_the_template = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    os.kill(int(of_the_template[1]), signal.SIGKILL)
    time.sleep(60)
    return True


@scorer
def even_with_marker(trace: Trace, marker: str, wait_ms: float) -> bool:
    """Whether the trace's number is even, after a wait; creates the file `marker` when it starts."""
    Path(marker).touch()
    time.sleep(wait_ms / 1000)
    return int(trace.info.trace_id.removeprefix("tr-"), 16) % 2 == 0


@scorer
def crashing(trace: Trace, how: str, ends_with: str = "") -> bool:
    """True for traces whose id ends otherwise; else harms its process: hang, exit, kill, interrupt, fill or close."""
    if not trace.info.trace_id.endswith(ends_with):
        return True
    if how == "hang":
        print("about to hang", flush=True)
        while True:
            time.sleep(3600)
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "fill":
        return bool(bytearray(2**40))
    os.closerange(3, 256)
    return True


@scorer
def with_child(trace: Trace, file: str) -> bool:
    """Starts a process that outlives it, writes that one's id to `file`, and hangs."""
    child = subprocess.Popen(["sleep", "3600"])
    Path(file).write_text(str(child.pid))
    time.sleep(3600)
    return True


@scorer
def loud(trace: Trace) -> bool:
    """Prints its process id, a secret of the environment and a great deal."""
    print(f"I am {os.getpid()}, {os.environ.get('LOUD_TOKEN')}", "x" * 100_000, "the end")
    return True
