"""The example notebook runs from its first cell to its last, with the results that its text describes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from monitoring_pipeline_tests.docs.conftest import documentation

NOTEBOOK = documentation().parent / "examples" / "from_archive_to_dataset.ipynb"
# Runs the cells as a kernel does: in order, in one namespace.
RUN = """
import json, sys

cells = {}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), cells)
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(
        {
            "added": [cells["first"].added, cells["again"].added],
            "records": len(cells["failures"]),
            "metrics": {name: float(value) for name, value in cells["results"].metrics.items()},
            "bad hour": str(cells["bad_hour"]),
            "least change": float(cells["comparison"].measures.loc["error_rate", "low"]),
        },
        file,
    )
"""


def test_the_notebook_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    ended = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK, tmp_path / "results.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["records"] == 8
    assert results["added"] == [8, 0]
    assert results["metrics"]["tool_errors/mean"] == 0
    assert results["bad hour"] == "2026-01-01 18:00:00+00:00"
    assert results["least change"] > 0


def test_the_notebook_contains_no_outputs() -> None:
    """Outputs change from run to run, and may contain the content of traces."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"]] == []
