"""Where the commands keep their Dagster runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitoring_pipeline.keys import NO_PREFIX
from monitoring_pipeline.orchestration.runs import start_instance


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_the_instance_is_beside_the_configuration(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", home or "")  # so that the test leaves it as it was
    if home is None:
        monkeypatch.delenv("DAGSTER_HOME")
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\nnux:\n  enabled: false\n")
    with start_instance(tmp_path, NO_PREFIX) as instance:
        assert Path(instance.root_directory) == tmp_path / "data" / "dagster"
        assert not instance.nux_enabled
    assert os.environ["DAGSTER_HOME"] == str(tmp_path / "data" / "dagster")


def test_the_home_of_the_environment_is_used(dagster_home: Path, tmp_path: Path) -> None:
    with start_instance(tmp_path, NO_PREFIX) as instance:
        assert Path(instance.root_directory) == dagster_home
    assert not (tmp_path / "data").exists()
