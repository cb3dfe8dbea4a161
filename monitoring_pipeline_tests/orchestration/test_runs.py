"""Where the commands keep their Dagster runs."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import pytest

from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.keys import NO_PREFIX
from monitoring_pipeline.orchestration.runs import failures, start_instance


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


def test_a_run_that_fails_before_its_first_step_says_why() -> None:
    class Broken(dg.ConfigurableResource):
        def setup_for_execution(self, context: dg.InitResourceContext) -> None:
            raise LakeError("the lake is missing")

    @dg.op(required_resource_keys={"lake"})
    def use() -> None:
        raise AssertionError("the run ends before")

    @dg.job(resource_defs={"lake": Broken()})
    def work() -> None:
        use()

    result = work.execute_in_process(instance=dg.DagsterInstance.ephemeral(), raise_on_error=False)
    assert {step: reason.rpartition(": ")[2] for step, reason in failures(result).items()} == {
        "run": "the lake is missing"
    }
