"""What a user sees if the lake vanished or is damaged, and the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS
from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.made_project import FROM, TO, MadeProject

pytestmark = pytest.mark.usefixtures("dagster_home")


@pytest.fixture
def call(made: MadeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    command, file = calling(monkeypatch, capsys), str(made.configure())
    return lambda *arguments: command(*arguments, "--config", file)


def test_a_lake_that_vanished_is_made_again_only_on_demand(made: MadeProject, call: Call) -> None:
    assert call("upkeep").code == 0
    shutil.rmtree(made.lake.location)
    for command in (("run", "--from", FROM, "--to", TO), ("upkeep",), ("report", "--day", "2026-01-01")):
        refused = call(*command)
        assert (refused.code, len(refused.err.splitlines())) == (1, 1), refused.err
        assert refused.error.startswith(f"error: the lake at {made.lake.location} is missing or empty: ")
        assert "`monitoring-pipeline setup --new-lake`" in refused.error
        assert not Path(made.lake.location).exists()

    assert call("setup", "--new-lake").code == 0
    assert call("upkeep").code == 0


def test_a_damaged_table_is_repaired_by_the_command_that_the_error_names(made: MadeProject, call: Call) -> None:
    table = Path(made.lake.path(AGENT_TRACES))
    (table / "_delta_log" / "_last_checkpoint").write_text('{"version": 7, "size": 2}')
    broken = call("upkeep")
    assert (broken.code, len(broken.err.splitlines())) == (1, 1), broken.err
    assert "`monitoring-pipeline upkeep --repair`" in broken.error

    repaired = call("upkeep", "--repair")
    assert repaired.code == 0, repaired.error
    assert f"removed {table}/_delta_log/_last_checkpoint: it names checkpoint 7, which is missing" in repaired.out
    assert "_delta_log" not in call("upkeep", "--repair").out
    assert call("upkeep").code == 0


def test_a_table_that_cannot_be_repaired_is_named_and_the_others_are_repaired(made: MadeProject, call: Call) -> None:
    made.lake.version(ASSESSMENTS)
    logs = [Path(made.lake.path(table)) / "_delta_log" for table in (AGENT_TRACES, ASSESSMENTS)]
    for log in logs:
        (log / "_last_checkpoint").write_text("{")
    (logs[0] / f"{0:020}.json").unlink()
    done = call("upkeep", "--repair")
    assert done.code == 1
    assert done.error.startswith(f"error: {logs[0].parent}: its log is not whole, and nothing was changed: ")
    assert [log / "_last_checkpoint" for log in logs if (log / "_last_checkpoint").exists()] == [
        logs[0] / "_last_checkpoint"
    ]


def test_only_a_lake_in_folders_is_repaired(made: MadeProject, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made.configure()
    file.write_text(file.read_text().replace(made.lake.location, "s3://bucket/lake"))
    refused = call("upkeep", "--repair")
    assert (refused.code, "only a lake in folders is repaired here" in refused.error) == (1, True)
    file.write_text(file.read_text().replace("s3://bucket/lake", str(made.folder / "none")))
    assert "no tables there" in call("upkeep", "--repair").error
