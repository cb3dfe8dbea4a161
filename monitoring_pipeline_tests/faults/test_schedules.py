"""Schedules under faults keep all invariants, and each invariant finds a bug that is planted for it.

`make soak` plays many more schedules, with the real commands among their steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pyspark.sql import Column, DataFrame

from monitoring_pipeline import derivations
from monitoring_pipeline.archive import window as archiving
from monitoring_pipeline.resources import delta_folders
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring import coverage, sampling
from monitoring_pipeline.tables import ARCHIVED_HOURS, SUPERSEDED_ASSESSMENTS, TRACE_ERRORS, Table
from monitoring_pipeline.upkeep import deletion
from monitoring_pipeline.upkeep.searching import Search
from monitoring_pipeline_tests.conftest import MakeOnce
from monitoring_pipeline_tests.faults.faults import OF_THE_LAKE
from monitoring_pipeline_tests.faults.invariants import INVARIANTS
from monitoring_pipeline_tests.faults.playing import Played, Stage, stage
from monitoring_pipeline_tests.faults.schedule import Schedule
from monitoring_pipeline_tests.sources.stores import Store

SEEDS = (43, 653)  # their faults are of every kind


@pytest.fixture(scope="module")
def place(make_once: MakeOnce, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("faults"), make_once("empty-store", Store.create)) as place:
        yield place


def test_a_seed_gives_one_schedule() -> None:
    assert Schedule(5).steps() == Schedule(5).steps() != Schedule(6).steps()


def test_no_invariant_is_violated(place: Stage) -> None:
    played, kinds = Played(), {*OF_THE_LAKE, "mlflow", "judge"}
    for seed in SEEDS:
        schedule = Schedule(seed, length=9)
        assert place.play(schedule, played) == [], f"replay: {schedule.replay}"
    assert {kind for kind in kinds for name in played.faults if name.startswith(kind)} == kinds
    assert played.interrupted


def keeps_the_first_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LakeResource, "upsert", LakeResource.insert)


def adds_rows_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = delta_folders.differences

    def blind(table: Table, present: Any, new: Any) -> Any:
        return (new, new.slice(0, 0)) if table is ARCHIVED_HOURS else differences(table, present, new)

    monkeypatch.setattr(delta_folders, "differences", blind)


def loses_superseded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    insert = LakeResource.insert

    def forgetful(self: LakeResource, table: Table, rows: Any, *arguments: Any) -> int:
        return 0 if table is SUPERSEDED_ASSESSMENTS else insert(self, table, rows, *arguments)

    monkeypatch.setattr(LakeResource, "insert", forgetful)


def draws_another_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(scorer: str, rate: float) -> Column:
        return sampling.drawn(f"{scorer} ", rate)

    monkeypatch.setattr(coverage, "drawn", drawn)


def takes_unsampled_for_filtered_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = coverage.ledger

    def wrong(states: DataFrame, *arguments: Any) -> DataFrame:
        return ledger(states.replace("unsampled", "filtered_out", ["state"]), *arguments)

    monkeypatch.setattr(coverage, "ledger", wrong)


def leaves_old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LakeResource, "purge", lambda self, table: None)
    monkeypatch.setattr(deletion, "search", lambda lake, settings, marks, *more: Search(marks))


def derives_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    derive = derivations.Derivation.derive

    def wrong(self: derivations.Derivation, *arguments: Any) -> None:
        if self.table is not TRACE_ERRORS:
            derive(self, *arguments)

    monkeypatch.setattr(derivations.Derivation, "derive", wrong)


def keeps_a_day_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    remove = LakeResource.remove_before
    monkeypatch.setattr(
        LakeResource, "remove_before", lambda self, table, day: remove(self, table, day - timedelta(days=1))
    )


def accounts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "keep_account", lambda *arguments, **named: None)


@dataclass(frozen=True)
class Planted:
    """A bug, the invariant that finds it, and the seed of a short schedule in which it does."""

    bug: Callable[[pytest.MonkeyPatch], None]
    invariant: str
    seed: int


PLANTED = (
    Planted(keeps_the_first_content, "archived_once", 140),
    Planted(adds_rows_that_are_there, "no_row_twice", 86),
    Planted(loses_superseded_results, "what_was_kept_stays", 140),
    Planted(draws_another_sample, "scored_once", 86),
    Planted(takes_unsampled_for_filtered_out, "ledgers_add_up", 190),
    Planted(leaves_old_files, "forgotten_everywhere", 1695),
    Planted(derives_no_errors, "figures_are_right", 137),
    Planted(keeps_a_day_longer, "expired_is_gone", 269),
    Planted(accounts_for_nothing, "no_hour_is_due", 86),
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.bug.__name__)
def test_a_planted_bug_is_found(planted: Planted, place: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.bug(monkeypatch)
    violations = place.play(Schedule(planted.seed, length=3, commands=False, faulty=False), Played())
    assert planted.invariant in {violation.partition(":")[0] for violation in violations}


def test_every_invariant_has_a_planted_bug() -> None:
    assert {planted.invariant for planted in PLANTED} == {invariant.__name__ for invariant in INVARIANTS}
