"""A project of the first version, whose lake and Dagster instance the newest opens and continues.

`first_version.tar.xz` has a store with twelve traces in two hours, six in each, and what commit ec8096d made of it with
`monitoring-pipeline run --from 2026-01-01T05:00Z --to 2026-01-01T06:00Z`: lake, reports and data/dagster.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from monitoring_pipeline import api
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.delta_errors import VERSION
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, TABLES
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.cli.calling import calling
from monitoring_pipeline_tests.sources.stores import START, trace_id

ARCHIVE = Path(__file__).with_name("first_version.tar.xz")
BOTH = Window(START, START + 2 * HOUR)
RANGE = ("--from", "2026-01-01T05:00Z", "--to", "2026-01-01T07:00Z")


def test_a_project_of_the_first_version_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.delenv("DAGSTER_HOME")
    settings = load_settings(tmp_path / "monitoring.toml")
    lake, scorers = build_resources(settings)["lake"], load_scorers(settings.scorers)
    old = lake.read(AGENT_TRACES).select("trace_id").toArrow().to_pylist()
    assert sorted(row["trace_id"] for row in old) == [trace_id(number) for number in range(6)]
    (tmp_path / "data" / "reports" / "2026-01-01" / "report.html").unlink()

    call = calling(monkeypatch, capsys)
    ran = call("run", *RANGE)
    assert ran.code == 0, ran.out + ran.err
    assert "12 traces archived, 24 spans, 0 in quarantine" in ran.out
    assert (tmp_path / "data" / "reports" / "2026-01-01" / "report.html").is_file()

    results = lake.read_columns(ASSESSMENTS, BOTH, "trace_id", "scorer", "scorer_digest").to_pylist()
    for scorer in scorers:
        scored = [row["trace_id"] for row in results if row["scorer_digest"] == scorer.digest]
        assert sorted(scored) == [trace_id(number) for number in range(12)]
    assert ledger_problems(lake, scorers, BOTH) == []
    columns = {table.name: set(lake.read(table).columns) for table in TABLES}
    assert columns == {table.name: set(table.schema.names) for table in TABLES}
    assert len(api.search(start_time=BOTH.start, end_time=BOTH.end, settings=settings)) == 12

    again = call("run", *RANGE)
    assert again.code == 0, again.out + again.err
    assert "2 of 2 hours have not changed" in again.out


def test_a_table_that_grows_says_which_version_added_its_columns(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    from monitoring_pipeline import __version__

    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    lake = build_resources(load_settings(tmp_path / "monitoring.toml"))["lake"]
    assert VERSION not in DeltaTable(lake.path(AGENT_TRACES)).metadata().configuration
    lake.version(AGENT_TRACES)
    assert DeltaTable(lake.path(AGENT_TRACES)).metadata().configuration[VERSION] == __version__
