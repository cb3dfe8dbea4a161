"""Faults of a lake in folders: each is named in one line, and what can be mended is mended."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable

from monitoring_pipeline import __version__
from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.resources.delta_errors import VERSION
from monitoring_pipeline.resources.delta_repair import repair
from monitoring_pipeline.resources.known_lakes import check_known, forget_known
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.resources.lake_writer import MIDNIGHT, traces

DAY = Window(MIDNIGHT, MIDNIGHT + 24 * HOUR)
Damage = Callable[[Path], object]
CHECKPOINT = "00000000000000000003.checkpoint.parquet"
LAST_COMMIT = "00000000000000000005.json"


@pytest.fixture
def table(lake: LakeResource) -> Path:
    """A table with five rows, whose log has six commits and a checkpoint at the fourth."""
    for number in range(3):
        lake.insert(AGENT_TRACES, traces((f"t{number}", 0, "x")))
    DeltaTable(lake.path(AGENT_TRACES)).create_checkpoint()
    for number in (3, 4):
        lake.insert(AGENT_TRACES, traces((f"t{number}", 0, "x")))
    return Path(lake.path(AGENT_TRACES))


def named(version: int) -> Damage:
    return lambda log: (log / "_last_checkpoint").write_text(json.dumps({"version": version, "size": 3}))


def files(table: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (table / "_delta_log").iterdir()}


MENDED: dict[str, tuple[Damage, str]] = {
    "checkpoint missing": (lambda log: (log / CHECKPOINT).unlink(), "names checkpoint 3, which is missing"),
    "checkpoint cut": (lambda log: (log / CHECKPOINT).write_bytes(b"PAR1"), "names checkpoint 3, which cannot be read"),
    "checkpoint of the future named": (named(99), "names checkpoint 99, which is missing"),
    "name of the checkpoint cut": (lambda log: (log / "_last_checkpoint").write_text('{"vers'), "names no checkpoint"),
}


@pytest.mark.parametrize("fault", MENDED)
def test_a_table_whose_log_is_whole_is_mended(fault: str, lake: LakeResource, table: Path) -> None:
    damage, said = MENDED[fault]
    damage(table / "_delta_log")
    assert said in "\n".join(repair(table))
    assert lake.version(AGENT_TRACES) == 5
    assert lake.read(AGENT_TRACES).count() == 5
    assert repair(table) == []


@pytest.mark.parametrize("fault", [fault for fault in MENDED if "checkpoint" in fault.split()[0]])
def test_the_error_of_a_table_that_can_be_mended_names_the_command(fault: str, lake: LakeResource, table: Path) -> None:
    MENDED[fault][0](table / "_delta_log")
    with pytest.raises(LakeError, match=r"cannot open .*agent_traces: .*upkeep --repair") as refused:
        lake.insert(AGENT_TRACES, traces(("new", 0, "x")))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda log: (log / "00000000000000000004.json").unlink(),
        lambda log: (log / LAST_COMMIT).write_text('{"add'),
        lambda log: (log / LAST_COMMIT).write_text(""),
        lambda log: [(log / CHECKPOINT).unlink(), (log / "00000000000000000001.json").unlink()],
    ],
    ids=["commit missing", "commit cut", "commit empty", "checkpoint missing, commit before it too"],
)
def test_nothing_changes_if_the_log_is_not_whole(damage: Damage, table: Path) -> None:
    damage(table / "_delta_log")
    before = files(table)
    with pytest.raises(LakeError, match="its log is not whole, and nothing was changed"):
        repair(table)
    assert files(table) == before


def test_only_old_temporary_files_are_removed(table: Path) -> None:
    log = table / "_delta_log"
    names = ["_commit_5a.json.tmp", f"{LAST_COMMIT}#1"]
    for name in names:
        (log / name).write_text("{")
    assert repair(table) == []
    before = time.time() - 7200
    for name in names:
        os.utime(log / name, (before, before))
    assert len(repair(table)) == 2
    assert not any((log / name).exists() for name in names)


@pytest.mark.parametrize(
    ("protocol", "needs"),
    [
        ({"minReaderVersion": 9, "minWriterVersion": 9}, "reader version 9"),
        (
            {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["newest"], "writerFeatures": ["newest"]},
            "newest",
        ),
        ({"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["newest"]}, "newest"),
    ],
    ids=["version", "feature of readers", "feature of writers"],
)
def test_a_table_of_a_newer_delta_lake_is_refused_at_once(
    protocol: dict[str, object], needs: str, lake: LakeResource, table: Path
) -> None:
    (table / "_delta_log" / "00000000000000000006.json").write_text(json.dumps({"protocol": protocol}) + "\n")
    began = time.process_time()
    with pytest.raises(LakeError, match=rf"{needs}.*newer Delta Lake there than deltalake \d") as refused:
        lake.insert(AGENT_TRACES, traces(("new", 0, "x")))
    assert "\n" not in str(refused.value)
    assert time.process_time() - began < 5


def test_a_lake_of_a_newer_version_of_the_pipeline_is_refused(lake: LakeResource, table: Path) -> None:
    delta = DeltaTable(table)
    assert delta.metadata().configuration[VERSION] == __version__
    delta.alter.set_table_properties({VERSION: "7.5.1"}, raise_if_not_exists=False)
    with pytest.raises(LakeError, match=f"monitoring-pipeline 7.5.1 wrote it, and this is {__version__}"):
        lake.read_columns(AGENT_TRACES, DAY, "trace_id")


def test_a_lake_that_is_older_than_its_version_is_used(lake: LakeResource, table: Path) -> None:
    DeltaTable(table).alter.set_table_properties({VERSION: "0.0.9"}, raise_if_not_exists=False)
    assert lake.insert(AGENT_TRACES, traces(("new", 0, "x"))) == 1


def test_a_data_file_that_is_cut_or_missing_is_named(lake: LakeResource, table: Path) -> None:
    file = next(table.glob("date=*/*.parquet"))
    file.write_bytes(b"PAR1")
    with pytest.raises(LakeError, match=r"cannot read .*agent_traces: "):
        lake.read_columns(AGENT_TRACES, DAY, "trace_id")
    file.unlink()
    with pytest.raises(LakeError, match=r"cannot read .*agent_traces: "):
        lake.read_columns(AGENT_TRACES, DAY, "trace_id")


class PanicException(BaseException):
    """As Rust's panics arrive in Python."""


def test_a_panic_while_writing_is_an_error_of_the_lake(lake: LakeResource, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*arguments: object, **options: object) -> None:
        raise PanicException("called `Result::unwrap()` on an `Err` value: No space left on device")

    monkeypatch.setattr("deltalake.write_deltalake", panic)
    with pytest.raises(LakeError, match=r"cannot write .*No space left on device; check .* the space"):
        lake.insert(AGENT_TRACES, traces(("a", 0, "x")))


@pytest.fixture
def instance(dagster_home: Path) -> dg.DagsterInstance:
    return dg.DagsterInstance.get()


def vanish(lake: LakeResource) -> None:
    shutil.rmtree(lake.location)


def replaced(lake: LakeResource) -> None:
    vanish(lake)
    lake.version(AGENT_TRACES)


@pytest.mark.parametrize("fault", [vanish, replaced], ids=["missing", "replaced by an empty one"])
def test_a_lake_that_vanished_is_not_made_again_unless_wanted(
    fault: Callable[[LakeResource], None], lake: LakeResource, instance: dg.DagsterInstance
) -> None:
    check_known(lake, instance)
    check_known(lake, instance)
    fault(lake)
    for _ in range(2):
        with pytest.raises(LakeError, match=r"the lake at .* is .*setup --new-lake"):
            check_known(lake, instance)
    assert Path(lake.location).exists() is (fault is replaced)
    forget_known(lake, instance)
    check_known(lake, instance)
    assert lake.version(AGENT_TRACES) == 0


def test_a_lake_that_was_moved_away_and_back_is_used(
    lake: LakeResource, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    check_known(lake, instance)
    shutil.move(lake.location, tmp_path / "elsewhere")
    with pytest.raises(LakeError):
        check_known(lake, instance)
    shutil.move(tmp_path / "elsewhere", lake.location)
    check_known(lake, instance)


def test_a_run_of_dagster_ends_before_it_makes_a_vanished_lake_again(
    lake: LakeResource, instance: dg.DagsterInstance
) -> None:
    @dg.op(required_resource_keys={"lake"})
    def use(context) -> None:
        context.resources.lake.version(AGENT_TRACES)

    @dg.job(resource_defs={"lake": lake})
    def work() -> None:
        use()

    assert work.execute_in_process(instance=instance).success
    vanish(lake)
    with pytest.raises(dg.DagsterResourceFunctionError) as refused:
        work.execute_in_process(instance=instance)
    assert "setup --new-lake" in str(refused.value.__cause__)
    assert not Path(lake.location).exists()


def test_the_folders_that_are_made_are_private(lake: LakeResource, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        made = LakeResource(location=str(tmp_path / "data" / "lake"), spark=lake.spark)
        made.version(AGENT_TRACES)
        (tmp_path / "shared").mkdir(mode=0o755)
        LakeResource(location=str(tmp_path / "shared"), spark=lake.spark).version(AGENT_TRACES)
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("data", "data/lake", "shared")}
    assert modes == {"data": 0o700, "data/lake": 0o700, "shared": 0o755}
