"""Measures works, each in a process of its own, and compares two works that must give the same answer.

A work is a generator function: it prepares itself (imports, connections) and yields; what it does until its second
yield is measured; then it returns its answer, which is not measured.
"""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Work = Callable[..., Generator[None, None, Any]]
Figure = Literal["wall_s", "cpu_s", "peak_mb"]
CHILD = "import sys, pathlib; from benchmarks.measuring import run_here; run_here(pathlib.Path(sys.argv[1]))"
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ASYNC_LOGGING": "false", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Measured:
    """Seconds by the clock, seconds of CPU (user and system, with ended children) and peak memory of the process."""

    wall_s: float
    cpu_s: float
    peak_mb: float


@dataclass(frozen=True)
class Result:
    """A row of the table: what we need, what the alternative needs, and whether the target is met.

    `ratio` is that which `target` limits; None where the target is an absolute figure.
    """

    work: str
    ours: Measured
    instead: Measured | None
    ratio: float | None
    target: str
    met: bool
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class DifferentAnswersError(Exception):
    """The two sides of a comparison do not answer the same."""


def measured(work: Work, *arguments: Any) -> tuple[Measured, Any]:
    """The figures and the answer of the work, run in a new process; its output goes to stderr if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.pickle")
        file.write_bytes(pickle.dumps((work.__module__, work.__name__, arguments)))
        ran = subprocess.run(
            [sys.executable, "-c", CHILD, str(file)],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if ran.returncode:
            sys.stderr.write(ran.stdout.decode(errors="replace"))
            raise RuntimeError(f"{work.__module__}.{work.__name__} ended with {ran.returncode}")
        return pickle.loads(file.read_bytes())


def environment() -> dict[str, str]:
    """The environment of a measured process: as a user's, with compiled modules, which a first round writes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MONITORING_", "DAGSTER_"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    compiled = str(ROOT / "build" / "pycache")
    return {**kept, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": compiled}


def medians(rounds: list[Measured]) -> Measured:
    """The median of each figure; of the peak memory, the highest."""
    return Measured(
        statistics.median(one.wall_s for one in rounds),
        statistics.median(one.cpu_s for one in rounds),
        max(one.peak_mb for one in rounds),
    )


def same(ours: Any, instead: Any) -> bool:
    """Whether two answers are equal, floating-point numbers to nine digits."""
    if isinstance(ours, float) and isinstance(instead, float):
        return abs(ours - instead) <= 1e-9 * max(1.0, abs(ours), abs(instead))
    if isinstance(ours, dict) and isinstance(instead, dict):
        return ours.keys() == instead.keys() and all(same(ours[key], instead[key]) for key in ours)
    if isinstance(ours, list | tuple) and isinstance(instead, list | tuple):
        return len(ours) == len(instead) and all(map(same, ours, instead))
    return ours == instead


def side_by_side(ours: Work, instead: Work, *arguments: Any, rounds: int) -> tuple[Measured, Measured]:
    """The medians of both works, measured in turn, after a first round whose answers must be equal and do not count."""
    check_answers(ours, instead, *arguments)
    turns = [(measured(ours, *arguments)[0], measured(instead, *arguments)[0]) for _ in range(rounds)]
    return medians([turn[0] for turn in turns]), medians([turn[1] for turn in turns])


def check_answers(ours: Work, instead: Work, *arguments: Any) -> None:
    """Run both works once.

    Raises:
        DifferentAnswersError: their answers differ.
    """
    our_answer, other_answer = measured(ours, *arguments)[1], measured(instead, *arguments)[1]
    if not same(our_answer, other_answer):
        raise DifferentAnswersError(
            f"{ours.__name__} and {instead.__name__} differ: {our_answer!r:.2000} and {other_answer!r:.2000}"
        )


def faster(work: str, ours: Measured, instead: Measured, times: float, rounds: int) -> Result:
    """Met if we are at least `times` as fast by the clock."""
    ratio = instead.wall_s / ours.wall_s
    return Result(work, ours, instead, ratio, f">= {times:g} x as fast", ratio >= times, rounds)


def no_more(work: str, ours: Measured, instead: Measured, times: float, figure: Figure, rounds: int) -> Result:
    """Met if we need at most `times` the alternative's figure."""
    ratio = getattr(ours, figure) / getattr(instead, figure)
    return Result(work, ours, instead, ratio, f"<= {times:g} x {UNITS[figure]}", ratio <= times, rounds)


def at_most(work: str, ours: Measured, limit: float, figure: Figure, rounds: int) -> Result:
    """Met if the figure is within an absolute limit."""
    return Result(work, ours, None, None, f"<= {limit:g} {UNITS[figure]}", getattr(ours, figure) <= limit, rounds)


UNITS: dict[Figure, str] = {"wall_s": "s", "cpu_s": "CPU s", "peak_mb": "MB"}


def run(work: Generator[None, None, Any]) -> tuple[Measured, Any]:
    """The figures and the answer of the work, run in this process."""
    next(work)
    cpu_s, began = _cpu_s(), time.perf_counter()
    next(work)
    wall_s, cpu_s, peak_mb = time.perf_counter() - began, _cpu_s() - cpu_s, _peak_mb()
    try:
        next(work)
    except StopIteration as ended:
        return Measured(wall_s, cpu_s, peak_mb), ended.value
    raise RuntimeError("a work must yield twice")


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mb() -> float:
    # Not ru_maxrss of this process, which begins with the memory of the parent that forked it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own_kb = int(status["VmHWM"].split()[0])
    return max(own_kb, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def run_here(file: Path) -> None:
    """Run the work that `file` names, and replace the file by its figures and answer."""
    module, name, arguments = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(run(getattr(importlib.import_module(module), name)(*arguments))))
