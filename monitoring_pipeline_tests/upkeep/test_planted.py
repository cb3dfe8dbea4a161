"""A thousand personal strings in every place where text goes: after a deletion, no byte of any is left anywhere."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Expectation, Feedback, Trace
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.keys import DATASETS
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import execute, run_chain
from monitoring_pipeline.orchestration.unchanged import Work
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.settings import (
    DatasetSettings,
    LakeSettings,
    MlflowSettings,
    ReportSettings,
    ScoringSettings,
    Settings,
)
from monitoring_pipeline.upkeep import deletion
from monitoring_pipeline.upkeep.recount import Recount
from monitoring_pipeline_tests.made_project import scorer
from monitoring_pipeline_tests.sources.stores import HOUR, Store, span_json, trace_id

PLANTED = re.compile(r"Quagga\d{4}x")
ANN, BOB = "ann.quagga@example.org", "user-bob"
ANNS = (1, 3, 5, 7, 9)  # traces; the others are Bob's
DAY = "2026-01-01"
HERE = "monitoring_pipeline_tests.upkeep.test_planted"


@as_scorer
def failing(outputs: Any) -> Feedback:
    """Raises an error that quotes the answer, and prints it."""
    print(outputs)
    raise ValueError(f"cannot judge {outputs}")


@as_scorer
def conversation(session: list[Trace]) -> Feedback:
    """A result on a session, which quotes all of its answers."""
    return Feedback(value=True, rationale=" ".join(str(trace.data.response) for trace in session))


class Strings:
    """Planted strings; each call returns some new ones."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int = 1) -> str:
        first, self.count = self.count, self.count + number
        return " ".join(f"Quagga{n:04}x" for n in range(first, self.count))


def log_trace(store: Store, number: int, text: Callable[..., str], user: str, session: str) -> None:
    """Log a trace with texts from `text` in all of its parts."""
    attributes = {
        "mlflow.spanInputs": json.dumps({"q": text(30), "nested": json.dumps({"a": f"line\n{text(10)}"})}),
        "mlflow.spanOutputs": json.dumps(f"{text(30)}\n{text(5)}"),
        "own.attribute": json.dumps(text(20)),
    }
    event = {"name": "exception", "time_unix_nano": 1, "attributes": {"exception.message": text(10)}}
    failed = {"code": "STATUS_CODE_ERROR", "message": text(10)}
    source = AssessmentSource("HUMAN", "x")
    store.log(
        number,
        [span_json(number, attributes=attributes, status=failed, events=[event])],
        [
            Feedback(name="liked", value=False, rationale=text(20), source=source),
            Expectation(name="expected_response", value=text(20), source=source),
        ],
        trace_metadata={"mlflow.trace.user": user, "mlflow.trace.session": session, "own": text(15)},
        tags={"note": text(20)},
        client_request_id=text(),
        request_preview=text(9),
    )


def settings_in(folder: Path) -> Settings:
    return Settings(
        mlflow=MlflowSettings(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiments=["made"]),
        lake=LakeSettings(location=str(folder / "lake")),
        reports=ReportSettings(location=str(folder / "reports"), log_to_experiment="reports"),
        scoring=ScoringSettings(write_back=True),
        scorers=[scorer("failing", f"{HERE}:failing"), scorer("conversation", f"{HERE}:conversation")],
        datasets=[
            DatasetSettings(
                name="all", kind="traces", formats=["jsonl", "parquet"], location=str(folder / "datasets"), mlflow=True
            )
        ],
    )


def holding(folder: Path) -> dict[str, int]:
    """The files below the folder with planted strings, in bytes, values of Parquet or names, and how many each has."""
    found: dict[str, int] = {}
    for file in (path for path in folder.rglob("*") if path.is_file()):
        text = f"{file}\n" + file.read_bytes().decode("utf-8", "replace")
        if file.suffix == ".parquet":
            text += json.dumps(pq.ParquetFile(file).read().to_pylist(), default=str)
        if planted := set(PLANTED.findall(text)):
            found[str(file.relative_to(folder))] = len(planted)
    return found


def places(found: dict[str, int]) -> set[str]:
    return {name.split("/")[0] for name in found}


@pytest.fixture
def folder(
    tmp_path: Path, dagster_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Path]:
    """A folder with store, lake, reports, datasets, Dagster's home and temporary files, after a run of the chain."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store, text = Store.create(tmp_path), Strings()
    client = MlflowClient(store.uri)
    client.create_experiment("reports", artifact_location=(tmp_path / "artifacts of reports").as_uri())
    for number in range(10):
        # One session has traces of both: results on it quote Ann's, and are results on Bob's first trace.
        session = "shared-session" if number in (0, 1) else f"session-{number}"
        if number in ANNS:
            log_trace(store, number, text, ANN, session)
        else:
            log_trace(store, number, lambda count=1: "nothing of note " * count, BOB, session)
    assert text.count >= 1000
    yield tmp_path
    capfd.readouterr()


def test_after_a_deletion_nothing_of_a_thousand_planted_strings_is_left(folder: Path, dagster_home: Path) -> None:
    settings = settings_in(folder)
    definitions = build_definitions(settings)
    names, resources = settings.dagster.names, build_resources(settings)
    lake, tracking = resources["lake"], resources["tracking"]
    with dg.DagsterInstance.get() as instance:
        ran = run_chain(definitions, settings, Work([HOUR], HOUR.days()), None, instance, lambda event: None)
        assert ran.failed_steps == {}
        archive_window(settings.archive, tracking, lake, HOUR)  # with the results that the run has written back
        execute(definitions, names, names.definition(DATASETS), None, (DAY, DAY), instance, lambda event: None)
        leave_unfinished(folder)
        before = holding(folder)
        assert places(before) >= {"lake", "reports", "datasets", "mlflow.db", "dagster_home", "artifacts of reports"}
        assert any("compute_logs" in name for name in before)

        recount = Recount.of(settings, lake, tracking)
        (folder / "datasets" / "all" / DAY / "a copy.txt").write_text("Quagga0000x", encoding="utf-8")
        with pytest.raises(LakeError, match=r"found in .*a copy\.txt; remove the traces there"):
            deletion.delete(lake, recount, instance, None, [], [ANN], at_source=True)
        assert places(holding(folder)) == {"datasets"}
        (folder / "datasets" / "all" / DAY / "a copy.txt").unlink()
        deletion.finish(lake, lambda: recount, instance, names, None)

        assert not deletion.has_unfinished(lake)
        assert holding(folder) == {}
        assert len(instance.get_materialized_partitions(dg.AssetKey("daily_report"))) == 1
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        left = {row[0] for row in database.execute("SELECT request_id FROM trace_info")}
    assert left == {trace_id(number) for number in range(10) if number not in ANNS}


def leave_unfinished(folder: Path) -> None:
    """What killed writes leave: a file that no table lists, a dataset without a manifest, half a report."""
    file = next(path for path in (folder / "lake" / "agent_traces").rglob("*.parquet") if "date=" in str(path))
    shutil.copy(file, file.with_name("part-00000-killed.parquet"))
    built = folder / "datasets" / "all" / DAY
    killed = built.with_name("2026-01-02")
    killed.mkdir()
    shutil.copy(built / "records.jsonl", killed / "records.jsonl")
    shutil.copy(built / "records.jsonl", built / ".records.jsonl.0123456789abcdef0123456789abcdef")
    shutil.copy(folder / "reports" / DAY / "report.json", folder / "reports" / DAY / ".report.json.0123456789.tmp")
