"""Log lines in JSON: each names its run, step, scorer and partition, also that of a failure."""

from __future__ import annotations

import json
import re
from pathlib import Path

import dagster as dg
import pytest

from monitoring_pipeline.keys import MONITORING, scorer_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.text import secrets
from monitoring_pipeline_tests.made_project import FIRST, MadeProject

PAGE = Path(__file__).parents[2] / "docs" / "observing.md"


def test_every_message_of_a_run_is_an_object(
    made: MadeProject, dagster_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (documented,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (dagster_home / "dagster.yaml").write_text(documented, encoding="utf-8")
    monkeypatch.setenv("SCORER_TOKEN", "sk-very-secret-words")
    secrets.cache_clear()

    def fail(*_: object, **__: object) -> None:
        raise ValueError('no "lake"\nfor sk-very-secret-words')

    monkeypatch.setattr("monitoring_pipeline.orchestration.assets.assessments.score_window", fail)
    job = build_definitions(made.settings).resolve_job_def(MONITORING)
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(
            instance=instance, partition_key=FIRST, asset_selection=[scorer_key("stage_latency")], raise_on_error=False
        )
    secrets.cache_clear()

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert {line["run_id"] for line in lines} == {result.run_id}
    assert {line["partition"] for line in lines} == {FIRST}
    assert "DEBUG" not in {line["level"] for line in lines}
    failure, of_the_run = (line for line in lines if "ValueError" in line.get("error", ""))
    assert (failure["level"], failure["job"], failure["scorer"]) == ("ERROR", MONITORING, "stage_latency")
    assert failure["step"] == "assessments__stage_latency"
    assert "step" not in of_the_run
    assert 'no "lake"\nfor ***' in failure["error"]
    assert failure["time"].endswith("+00:00")
