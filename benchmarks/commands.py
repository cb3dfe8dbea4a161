"""What a user waits for at the command line, whole processes: runs of the pipeline, `scorers list`, `doctor`, a report.

There is no alternative beside them; the targets are seconds of CPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.measuring import Result, at_most, environment, measured, medians

END = datetime(2026, 1, 8, tzinfo=UTC)  # the traffic ends here
HOURS, TRACES = 48, 2_000
QUIET_HOUR = timedelta(hours=20)  # before END; an hour of about 20 traces
TIME = "%Y-%m-%dT%H:%MZ"


def subject(folder: Path, small: bool) -> Iterator[Result]:
    """Each run from the same project, without and with its lake."""
    from monitoring_pipeline.demo.traffic import fill

    rounds = 1 if small else 3
    hours, traces = (6, 200) if small else (HOURS, TRACES)
    fresh, done = folder / "fresh", folder / "done"
    fresh.mkdir()
    fill(f"sqlite:///{fresh / 'mlflow.db'}", "support_agent", END, hours, traces)
    (fresh / "monitoring.toml").write_text(
        '[mlflow]\ntracking_uri = "sqlite:///mlflow.db"\n[archive]\nsource = "mlflow-sql"\n'
        f'start = "{(END - timedelta(hours=HOURS)):{TIME}}"\n'
    )
    start = END - timedelta(hours=hours)
    hour = max(start, END - QUIET_HOUR)
    one_hour = ("run", "--from", f"{hour:{TIME}}", "--to", f"{hour + timedelta(hours=1):{TIME}}")
    all_hours = ("run", "--from", f"{start:{TIME}}", "--to", f"{END:{TIME}}")
    shown = f"{hours} hours of {traces:,} traces"

    shutil.copytree(fresh, done)
    subprocess.run([_program(), *all_hours], cwd=done, env=environment(), check=True, stdout=subprocess.DEVNULL)
    report = ("report", "--day", f"{END - timedelta(days=1):%Y-%m-%d}")
    for work, project, arguments, limit in (
        ("one hour, monitoring-pipeline run", fresh, one_hour, 4),
        (f"{shown}, monitoring-pipeline run", fresh, all_hours, 15),
        (f"{shown}, run again with nothing to do", done, all_hours, 4),
        ("monitoring-pipeline scorers list", done, ("scorers", "list"), 1.5),
        ("monitoring-pipeline doctor", done, ("doctor",), 2.5),
        (f"report of a day, lake of {shown}", done, report, 1.5),
    ):
        measured(call, str(project), arguments)  # compiles what is not yet compiled
        ours = medians([measured(call, str(project), arguments)[0] for _ in range(rounds)])
        yield at_most(work, ours, limit, "cpu_s", rounds)


def call(project: str, arguments: tuple[str, ...]) -> Generator[None, None, None]:
    """Call the program in a copy of the project, so that each round begins alike."""
    shutil.copytree(project, "project")
    yield
    ended = subprocess.run([_program(), *arguments], cwd="project", env=environment(), check=False)
    if ended.returncode:
        raise RuntimeError(f"monitoring-pipeline {' '.join(arguments)} ended with {ended.returncode}")
    yield


def _program() -> str:
    return str(Path(sys.executable).parent / "monitoring-pipeline")
