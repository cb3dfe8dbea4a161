"""How much faster two workers of a Spark cluster score than one.

    python benchmarks/scorers_on_workers.py sqlite:///mlflow.db

Starts a cluster on loopback (scripts/install-spark has fetched its parts), archives the store into its catalog, and
runs one code scorer over everything: with one worker, with two, and so on in turn, each time as another scorer, so that
all is scored again. Each worker has one core. Prints one JSON line a run (workers, traces, seconds, traces a second),
and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.scoring import score_window
from monitoring_pipeline.settings import ArchiveSettings, ScorerSettings
from monitoring_pipeline.traces.sources import archive_window
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.cluster import SparkCluster, running

SHIPPED = "monitoring_pipeline.scoring.scorers:response_quality"


def scored(lake: LakeResource, window: Window, name: str) -> tuple[int, float]:
    """How many traces a new scorer has scored, and in how many seconds."""
    (scorer,) = load_scorers([ScorerSettings(name=name, scorer=SHIPPED)])
    began = time.perf_counter()
    counts = score_window(lake, scorer, window, "benchmark")
    return counts.seen, time.perf_counter() - began


def measure(cluster: SparkCluster, store: str, window: Window, rounds: int) -> None:
    """Print it all."""
    lake = LakeResource(location="spark_catalog.benchmark", spark=SparkResource(remote=cluster.remote))
    archive_window(ArchiveSettings(source="mlflow-sql"), TrackingResource(tracking_uri=store), lake, window)
    scored(lake, Window(window.start, window.start + timedelta(hours=1)), "warm_up")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2):
            if workers == 2:
                cluster.start_worker(1)
                scored(lake, Window(window.start, window.start + timedelta(hours=1)), f"warm_up_{turn}")
            traces, seconds = scored(lake, window, f"of_{workers}_{turn}")
            rates[workers].append(traces / seconds)
            result = {"workers": workers, "traces": traces, "seconds": round(seconds, 2)}
            print(json.dumps({**result, "per_second": round(traces / seconds)}), flush=True)
        cluster.kill("worker-1")
    medians = {workers: statistics.median(found) for workers, found in rates.items()}
    print(json.dumps({"two_workers_to_one": round(medians[2] / medians[1], 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="sqlite:///… of an MLflow store with traces")
    parser.add_argument("--start", default="2026-01-01", help="first day, UTC")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    start = datetime.fromisoformat(arguments.start).replace(tzinfo=UTC)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), workers=1) as cluster:
        measure(cluster, arguments.store, Window(start, start + timedelta(days=arguments.days)), arguments.rounds)


if __name__ == "__main__":
    main()
