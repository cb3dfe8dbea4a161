"""Runs the benchmarks, prints a table and writes it with versions and machine: python -m benchmarks --help."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.measuring import Measured, Result

SUBJECTS = ("aggregates", "archiving", "scoring", "commands", "growth")
PACKAGES = ("mlflow", "duckdb", "dagster", "pysail", "deltalake", "pyarrow")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--small", action="store_true", help="fewer traces and rounds; two minutes on two cores")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="default: %(default)s")
    arguments = parser.parse_args()
    if unknown := set(arguments.subjects) - {*SUBJECTS}:
        parser.error(f"no subject {', '.join(sorted(unknown))}; choose from {', '.join(SUBJECTS)}")
    results: list[Result] = []
    began, load = time.perf_counter(), os.getloadavg()
    for name in arguments.subjects or SUBJECTS:
        subject = importlib.import_module(f"benchmarks.{name}").subject
        with tempfile.TemporaryDirectory() as folder:
            for result in subject(Path(folder), arguments.small):
                print(line(result), flush=True)
                results.append(result)
    written = {
        "small": arguments.small,
        "seconds": round(time.perf_counter() - began),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_before": load,
            "load_after": os.getloadavg(),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "results": [result.to_dict() for result in results],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(written, indent=1) + "\n")
    print(f"\n{table(results)}\n\n{sum(result.met for result in results)} of {len(results)} targets met", flush=True)
    print(f"{arguments.output} has all figures, versions and the machine")


def line(result: Result) -> str:
    return f"{'met ' if result.met else 'MISS'}  {' | '.join(cells(result)[:-1])}"


def table(results: list[Result]) -> str:
    """The results as a Markdown table."""
    head = ("work", "ours", "instead", "ratio", "target", "rounds", "met")
    rows = [head, ("---",) * len(head), *map(cells, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(result: Result) -> tuple[str, ...]:
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    met = "yes" if result.met else "no"
    return result.work, shown(result.ours), shown(result.instead), ratio, result.target, str(result.rounds), met


def shown(figures: Measured | None) -> str:
    if figures is None:
        return ""
    return f"{figures.wall_s:.2f} s, {figures.cpu_s:.2f} CPU s, {figures.peak_mb:.0f} MB"


def processor() -> str:
    names = (
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    return next(names, platform.processor())


if __name__ == "__main__":
    main()
