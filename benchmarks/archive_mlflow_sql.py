"""Measures how fast `source = "mlflow-sql"` archives an MLflow database, compared with `mlflow.search_traces`.

    python benchmarks/archive_mlflow_sql.py sqlite:///mlflow.db --experiment agent

Each measurement runs in a new process. Archiving covers reading, flattening and writing into an empty lake. Prints one
JSON line per measurement (traces, seconds, traces per second, peak memory in MB), and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from typing import Any

from monitoring_pipeline.windows import Window

ALL_TIME = Window(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def search(address: str, experiment: str) -> dict[str, Any]:
    """Read all traces with `mlflow.search_traces`."""
    import mlflow

    mlflow.set_tracking_uri(address)
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        raise SystemExit(f"no experiment {experiment!r}")
    began = time.perf_counter()
    traces = mlflow.search_traces(
        locations=[found.experiment_id], include_spans=True, return_type="list", max_results=10**9
    )
    return measured("search_traces", len(traces), began)


def archive(address: str, experiment: str) -> dict[str, Any]:
    """Archive all traces from the database into a new lake."""
    from monitoring_pipeline.archive.window import archive_window
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.resources.spark import SparkResource
    from monitoring_pipeline.resources.tracking import TrackingResource
    from monitoring_pipeline.settings import ArchiveSettings

    source = ArchiveSettings(source="mlflow-sql")
    tracking = TrackingResource(tracking_uri=address, experiments=[experiment])
    with tempfile.TemporaryDirectory() as folder:
        lake = LakeResource(location=folder, spark=SparkResource())
        began = time.perf_counter()
        counts = archive_window(source, tracking, lake, ALL_TIME)
        return measured("mlflow-sql", counts.written, began)


def measured(what: str, traces: int, began: float) -> dict[str, Any]:
    """The result of the measurement that started at `began`, a value of the performance counter."""
    seconds = time.perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rate = round(traces / seconds)
    return {"what": what, "traces": traces, "seconds": round(seconds, 2), "per_second": rate, "peak_mb": peak_mb}


def main() -> None:
    """Measure both in turn, `repeat` times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="address of the MLflow database: sqlite:///… or postgresql://…")
    parser.add_argument("--experiment", default="bulk", help="experiment whose traces are read (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="number of measurements of each (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.repeat):
        for measure in (search, archive):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                result = process.submit(measure, arguments.address, arguments.experiment).result()
            print(json.dumps(result), flush=True)
            seconds.setdefault(result["what"], []).append(result["seconds"])
    searching, archiving = (statistics.median(seconds[what]) for what in ("search_traces", "mlflow-sql"))
    print(json.dumps({"ratio": round(searching / archiving, 1)}))


if __name__ == "__main__":
    main()
