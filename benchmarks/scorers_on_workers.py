"""Measures how much faster two workers of a Spark cluster score than one.

    python -m benchmarks.scorers_on_workers sqlite:///mlflow.db

Starts a cluster on loopback (run scripts/install-spark first), archives the store into its catalog, and runs a code
scorer over all traces with one worker and with two in turn, each time under a new name, so that every trace is scored
again. Each worker has one core. Prints one JSON line per run (scorer, workers, traces, seconds, traces per second), and
the ratio of the medians for each scorer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import ArchiveSettings, ScorerSettings
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.cluster import SparkCluster, running

# The first only reads the trace; the second processes its text for milliseconds.
SCORERS = {
    "response_quality": "monitoring_pipeline.scoring.scorers:response_quality",
    "verbatim_share": "benchmarks.scorers:verbatim_share",
}


def scored(lake: LakeResource, window: Window, name: str, scorer: str) -> tuple[int, float]:
    """The number of traces that a new scorer scores, and the seconds it takes."""
    (loaded,) = load_scorers([ScorerSettings(name=name, scorer=SCORERS[scorer])])
    began = time.perf_counter()
    counts = score_window(lake, loaded, window, "benchmark")
    return counts.seen, time.perf_counter() - began


def measure(cluster: SparkCluster, lake: LakeResource, window: Window, rounds: int, scorer: str) -> None:
    """Measure one scorer, and print the results."""
    first_day = Window(window.start, window.start + timedelta(days=1))
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2):
            if workers == 2:
                cluster.start_worker(1)
            # By now all workers have started Python and loaded MLflow.
            scored(lake, first_day, f"{scorer}_warm_{workers}_{turn}", "response_quality")
            traces, seconds = scored(lake, window, f"{scorer}_{workers}_{turn}", scorer)
            rates[workers].append(traces / seconds)
            result = {"scorer": scorer, "workers": workers, "traces": traces, "seconds": round(seconds, 2)}
            print(json.dumps({**result, "per_second": round(traces / seconds)}), flush=True)
        cluster.kill("worker-1")
    medians = {workers: statistics.median(found) for workers, found in rates.items()}
    print(json.dumps({"scorer": scorer, "two_workers_to_one": round(medians[2] / medians[1], 2)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="sqlite:///… of an MLflow store with traces")
    parser.add_argument("--start", default="2026-01-01", help="first day, UTC")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scorer", choices=SCORERS, action="append", help="only this one")
    arguments = parser.parse_args()
    start = datetime.fromisoformat(arguments.start).replace(tzinfo=UTC)
    window = Window(start, start + timedelta(days=arguments.days))
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), workers=1) as cluster:
        lake = LakeResource(location="spark_catalog.benchmark", spark=SparkResource(remote=cluster.remote))
        tracking = TrackingResource(tracking_uri=arguments.store)
        archive_window(ArchiveSettings(source="mlflow-sql"), tracking, lake, window)
        for scorer in arguments.scorer or SCORERS:
            measure(cluster, lake, window, arguments.rounds, scorer)


if __name__ == "__main__":
    main()
