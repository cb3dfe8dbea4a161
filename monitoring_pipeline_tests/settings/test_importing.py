"""Scorers are imported from the folder of monitoring.toml and those of [python] path, in every process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline_tests.cli.calling import run_command
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.made_project import FROM, TO, MadeProject

SCORER = """
from mlflow.genai.scorers import scorer

@scorer
def {name}(outputs) -> bool:
    return bool(outputs)
"""


@pytest.fixture(autouse=True)
def _path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("monitoring_pipeline.settings.importing._added", [])


def test_scorers_beside_the_configuration_and_in_named_folders_run(made: MadeProject, tmp_path: Path) -> None:
    for folder, name in ((made.folder, "beside"), (made.folder / "more", "further")):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}_scorers.py").write_text(SCORER.format(name=name))
    names = ("beside", "further")
    config = made.having().configure()
    config.write_text(
        config.read_text()
        + '[python]\npath = ["more"]\n'
        + "".join(f'[[scorers]]\nname = "{name}"\nscorer = "{name}_scorers:{name}"\n' for name in names)
    )
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "output"
    elsewhere.mkdir()
    chosen = [word for name in names for word in ("--scorer", name)]  # two run in processes of their own
    arguments = ("backfill", *chosen, "--from", FROM, "--to", TO, "--config", str(config))

    ran = Fork(run_command, arguments, elsewhere, {"PATH": os.environ["PATH"]}, output, output)

    assert ran.wait() == 0, output.read_text()
    assert {row["scorer"] for row in made.rows()} == set(names)
    assert len(made.rows()) == 2 * 40


def test_an_installed_package_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text("raise SystemExit")
    (tmp_path / "monitoring.toml").write_text("")
    load_settings(tmp_path / "monitoring.toml")
    assert sys.path[-1] == str(tmp_path)


def test_a_module_that_is_in_no_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.toml"
    file.write_text('[[scorers]]\nname = "lost"\nscorer = "lost_scorers:lost"\n')
    with pytest.raises(SettingsError, match=r"'lost_scorers'; put it into the folder of monitoring\.toml"):
        load_settings(file)
