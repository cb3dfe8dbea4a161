"""Plays a schedule: each step in the world and in the truth, with recoveries after which all invariants are checked."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from monitoring_pipeline_tests.faults import faults
from monitoring_pipeline_tests.faults.invariants import INVARIANTS, Seen
from monitoring_pipeline_tests.faults.schedule import END, HOURS, Schedule, Step
from monitoring_pipeline_tests.faults.truth import NOTHING, Change, Truth
from monitoring_pipeline_tests.faults.world import Outcome, Services, World, scorer_of
from monitoring_pipeline_tests.sources.stores import Store

STEPS_BETWEEN_RECOVERIES = 8


@dataclass
class Played:
    """What happened: steps and faults by kind, checks made, and violations with the steps before them."""

    schedules: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    interrupted: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.schedules} schedules, {self.steps.total()} steps, {self.interrupted} of them interrupted"]
        lines += [f"steps: {_counts(self.steps)}", f"faults: {_counts(self.faults)}", f"errors: {_counts(self.errors)}"]
        return "\n".join([*lines, f"{self.checks} checks, {len(self.violations)} violations"])


@dataclass(frozen=True)
class Stage:
    """Where schedules are played: a folder, an empty store to copy, a disk of fixed size if possible, and doubles."""

    folder: Path
    empty_store: Path
    disk: Path
    on_disk: bool
    services: Services

    def play(self, schedule: Schedule, played: Played, say: Callable[[str], None] = lambda line: None) -> list[str]:
        """Play the schedule; returns the violations, and adds to `played`."""
        folder = Path(tempfile.mkdtemp(prefix="schedule-", dir=self.folder))
        folder.chmod(0o755)
        world = World(folder, self.empty_store, self.disk, self.on_disk, self.services)
        player = _Player(world, played, say)
        try:
            for number, step in enumerate(schedule.steps(), 1):
                say(f"  {number}. {step}")
                player.take(step)
                if number % STEPS_BETWEEN_RECOVERIES == 0:
                    player.recover()
                if player.violations:
                    break
            else:
                player.recover()
        finally:
            world.close()
            shutil.rmtree(folder)
        played.schedules += 1
        played.violations += player.violations
        return player.violations


@contextmanager
def stage(folder: Path, empty_store: Path | None = None) -> Iterator[Stage]:
    """A stage in the folder, with this process's environment set for it."""
    folder.chmod(0o755)
    if empty_store is None:
        empty_store = folder / "empty-store"
        empty_store.mkdir()
        Store.create(empty_store)
    services = Services(folder)
    with ExitStack() as stack:
        stack.callback(services.close)
        stack.enter_context(mock.patch.dict("os.environ", services.environment()))
        on_disk = stack.enter_context(faults.disk(folder / "disk"))
        yield Stage(folder, empty_store, folder / "disk", on_disk, services)


class _Player:
    """Carries out steps, and keeps the truth beside them."""

    def __init__(self, world: World, played: Played, say: Callable[[str], None]):
        self.world, self.played, self.say = world, played, say
        self.truth = Truth()
        self.digests: dict[str, int] = {}
        self.now = Step("tune", rate=0.5)
        self.violations: list[str] = []

    def take(self, step: Step) -> None:
        """Carry out one step."""
        self.played.steps[step.command or step.action] += 1
        match step.action:
            case "log":
                for number, hour in zip(step.numbers, step.hours, strict=True):
                    self.truth.logged(number, hour)
                    self.world.log(number, self.truth.originals[number])
            case "rewrite" | "move" | "corrupt" | "repair" | "lose":
                self._change(step)
            case "tune":
                self.now = step
            case _:
                self._work(step)

    def recover(self) -> None:
        """Repeat the work without a fault, and check all invariants."""
        start = max(HOURS[0], self.truth.archive_from)
        version, rate = self.now.version, self.now.rate
        archive = Step("archive", start, END)
        forget = [Step("forget", numbers=(number,)) for number in sorted(self.truth.forgetting)]
        retain = Step("retain", hours=(self.truth.archive_from, self.truth.results_from))
        score = Step("score", start, END, version=version, rate=rate)
        judge = Step("judge", start, END, version=-1)
        derive = Step("derive", start, END, version=version, rate=rate)
        for step in (archive, *forget, retain, score, judge, derive, Step("compact")):
            if not self.violations:
                self._work(step)
                self.truth.forgets({*step.numbers} & self.truth.forgetting)
        if self.violations:
            return
        seen = Seen.of(self.world.lake, self.truth, self.digests, version, rate)
        for invariant in INVARIANTS:
            self.played.checks += 1
            self.violations += [f"{invariant.__name__}: {violation}" for violation in invariant(seen)]
        self.truth.lake = {number: {held} for number, held in seen.held().items()}

    def _change(self, step: Step) -> None:
        [number], [hour] = step.numbers, step.hours
        original = self.truth.originals[number]
        original.hour = hour
        original.exists = step.action != "lose"
        original.is_readable = step.action != "corrupt"
        original.revision += 1
        self.world.change(step.action, number, original)

    def _work(self, step: Step) -> None:
        if step.action == "retain":
            self.truth.archive_from, self.truth.results_from = step.hours
            self.world.archive_from, self.world.results_from = step.hours
        if step.action in ("score", "derive", "run") and step.version not in self.digests.values():
            self.digests[scorer_of(self.world.settings(step)).digest] = step.version
        if step.beside:
            self._work_together(step, step.beside)
            return
        outcome = self.world.run(step)
        self._note(step, outcome)
        match step.action:
            case "forget" if outcome.is_refused:
                known = [number for number in step.numbers if NOTHING not in self.truth.lake[number]]
                if len(known) == len(step.numbers) and not self.truth.forgetting.issuperset(step.numbers):
                    self.violations.append(f"{step} was refused: {outcome.reason}")
            case "forget" if outcome.is_complete:
                self.truth.forgets(step.numbers)
            case "forget":
                self.truth.forgetting |= {*step.numbers}
            case "run":  # it leaves out hours that look unchanged
                self.truth.happened(self.truth.archives(step.start, step.end), is_complete=False)
                self.truth.happened(self._change_of(step), is_complete=False)
            case _:
                self.truth.happened(self._change_of(step), outcome.is_complete)
                if step.over_http and step.fault:
                    self.truth.happened(self.truth.may_misread(step.start, step.end), is_complete=False)

    def _work_together(self, step: Step, other: Step) -> None:
        if other.action == "score" and other.version not in self.digests.values():
            self.digests[scorer_of(self.world.settings(other)).digest] = other.version
        ends = self.world.run_together(step)
        self.played.steps[other.action] += 1
        self._note(step, ends[0])
        self._note(other, ends[1])
        changes = self._change_of(step), self._change_of(other)
        self.truth.happened_together(*changes, (ends[0].is_complete, ends[1].is_complete))

    def _change_of(self, step: Step) -> Change:
        match step.action:
            case "archive":
                return self.truth.archives(step.start, step.end)
            case "score" | "run":
                return self.truth.scores(step.start, step.end, step.version, step.rate)
            case "retain":
                return self.truth.expires()
            case "compact" if step.command:
                return self.truth.expires()
        return lambda number, held: held

    def _note(self, step: Step, outcome: Outcome) -> None:
        if step.fault:
            self.played.faults[step.fault.name] += 1
        if outcome.is_complete:
            return
        self.played.interrupted += 1
        self.say(f"     interrupted: {outcome.reason.strip().splitlines()[-1][:200] if outcome.reason else ''}")
        self.played.errors[outcome.reason.partition(":")[0].strip()[:40] or "?"] += 1
        if not step.fault:
            self.violations.append(f"{step} failed without a fault: {outcome.reason}")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"
