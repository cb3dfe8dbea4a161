"""The steps of a seed: traffic, runs and upkeep in a random order, some of them struck by a fault.

The steps follow from the seed alone, so that a schedule is the same whatever its faults lead to.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from monitoring_pipeline_tests.faults.faults import Fault, draw_fault

HOURS = (22, 23, 24, 25, 26, 48)  # on three days, across two midnights
END = 49
RATES = (0.0, 0.2, 0.5, 0.8, 1.0)
TRAFFIC = {"log": 5, "rewrite": 2, "move": 1, "corrupt": 1, "repair": 1, "lose": 1}
WORK = {"archive": 7, "score": 5, "derive": 2, "judge": 1, "forget": 1, "compact": 1, "retain": 0.4, "tune": 2}
WORK |= {"together": 1.5, "command": 1.2}


@dataclass(frozen=True)
class Step:
    """One step, from hour `start` to before `end`; `command` is the real command, `beside` runs at the same time.

    `hours` are those of the logged or moved `numbers`; of a retention, the first that archive and results keep.
    """

    action: str
    start: int = 0
    end: int = 0
    numbers: tuple[int, ...] = ()
    hours: tuple[int, ...] = ()
    version: int = 1
    rate: float = 1.0
    over_http: bool = False
    command: str = ""
    beside: Step | None = None
    fault: Fault | None = None

    def __str__(self) -> str:
        parts = [f"`{self.command}`" if self.command else self.action]
        parts += [f"of {self.start}-{self.end}"] if self.end else []
        parts += [f"traces {','.join(map(str, self.numbers))}"] if self.numbers else []
        parts += [f"hours {','.join(map(str, self.hours))}"] if self.hours else []
        parts += [f"version {self.version} at {self.rate:g}"] if self.action in ("score", "tune", "run") else []
        parts += ["over HTTP"] if self.over_http else []
        parts += [f"beside ({self.beside})"] if self.beside else []
        parts += [f"under {self.fault}"] if self.fault else []
        return " ".join(parts)


class Schedule:
    """Draws steps; knows which traces there are, which scorer is configured, and what retention keeps.

    `commands` lets some steps run as real commands, which takes seconds each; `faulty` lets faults strike.
    """

    def __init__(self, seed: int, length: int = 24, commands: bool = True, faulty: bool = True):
        self.seed, self.length, self.commands, self.faulty = seed, length, commands, faulty
        self.version, self.rate = 1, 0.5
        self.archive_from = self.results_from = 0
        self._random = random.Random(seed)
        self._hours: dict[int, int] = {}  # of each trace
        self._corrupt: set[int] = set()
        self._lost: set[int] = set()
        self._forgotten: set[int] = set()

    @property
    def replay(self) -> str:
        """The command that plays this schedule, and prints each step."""
        options = f" --length {self.length}" + ("" if self.commands else " --no-commands")
        return f".venv/bin/python -m monitoring_pipeline_tests.faults --seed {self.seed}{options}"

    def steps(self) -> list[Step]:
        """All steps of the schedule."""
        first = [self._log(), self._log(), Step("archive", HOURS[0], END), self._scoring(HOURS[0], END)]
        return first + [step for _ in range(self.length) if (step := self._draw())]

    def _draw(self) -> Step | None:
        kinds = TRAFFIC if self._random.random() < 0.4 else WORK
        match self._random.choices([*kinds], [*kinds.values()])[0]:
            case "log":
                return self._log()
            case "forget":
                return self._forget()
            case "retain":
                return self._retain()
            case "tune":
                self.version += self._random.randint(0, 1)
                self.rate = self._random.choice(RATES)
                return Step("tune", version=self.version, rate=self.rate)
            case "command":
                return self._command() if self.commands else None
            case "together":
                return self._together()
            case action if action in TRAFFIC:
                return self._change(action)
            case action:
                return self._struck(self._work(action))

    def _log(self) -> Step:
        first = len(self._hours) + 1
        numbers = tuple(range(first, first + self._random.randint(1, 6)))
        hours = tuple(self._random.choice(self._kept()) for _ in numbers)
        self._hours |= dict(zip(numbers, hours, strict=True))
        return Step("log", numbers=numbers, hours=hours)

    def _change(self, action: str) -> Step | None:
        # Traces of days that the archive no longer keeps stay as they are, because no run reads them.
        choices = {number for number, hour in self._hours.items() if hour >= self.archive_from} - self._lost
        if action == "repair":
            choices &= self._corrupt
        elif action != "lose":
            choices -= self._corrupt
        if not choices:
            return None
        number = self._random.choice(sorted(choices))
        match action:
            case "move":
                earlier = [hour for hour in self._kept() if self._hours[number] - 20 <= hour < self._hours[number]]
                if not earlier:
                    return None
                self._hours[number] = self._random.choice(earlier)
            case "corrupt":
                self._corrupt.add(number)
            case "repair":
                self._corrupt.remove(number)
            case "lose":
                self._lost.add(number)
        return Step(action, numbers=(number,), hours=(self._hours[number],))

    def _forget(self, command: str = "") -> Step | None:
        choices = sorted(self._hours.keys() - self._forgotten)
        if not choices:
            return None
        numbers = tuple(self._random.sample(choices, min(len(choices), self._random.choice((1, 1, 2)))))
        self._forgotten |= {*numbers}
        return self._struck(Step("forget", numbers=numbers, command=command))

    def _retain(self) -> Step | None:
        if self.archive_from == 0:
            self.archive_from = 24
        elif self.results_from == 0:
            self.results_from = 24
        else:
            return None
        return self._struck(Step("retain", hours=(self.archive_from, self.results_from)))

    def _command(self) -> Step | None:
        start, end = self._window()
        end = min(end, start + 2)
        match self._random.choice(("run", "backfill", "upkeep", "delete")):
            case "run":
                step = Step("run", start, end, version=self.version, rate=self.rate, command="run")
            case "backfill":
                step = replace(self._scoring(start, end), command="backfill")
            case "delete":
                return self._forget("delete")
            case _:
                step = Step("compact", command="upkeep")
        return self._struck(step)

    def _together(self) -> Step:
        one = self._work(self._random.choice(("archive", "score")))
        other = self._work(self._random.choice(("archive", "score", "compact")))
        if other.end:  # on the same hours or on neighbouring ones
            start = min(max(one.start + self._random.choice((-1, 0, 0, 1)), self._kept()[0]), END - 1)
            other = replace(other, start=start, end=max(other.end, start + 1))
        fault = draw_fault(self._random, one, ("kill",)) if self.faulty and self._random.random() < 0.5 else None
        return replace(one, over_http=False, beside=replace(other, over_http=False), fault=fault)

    def _work(self, action: str) -> Step:
        start, end = self._window()
        match action:
            case "compact":
                return Step(action)
            case "score":
                return self._scoring(start, end)
            case "archive":
                return Step(action, start, end, over_http=self._random.random() < 0.35)
        return Step(action, start, end, version=self.version, rate=self.rate)

    def _scoring(self, start: int, end: int) -> Step:
        return Step("score", start, end, version=self.version, rate=self.rate)

    def _window(self) -> tuple[int, int]:
        start = self._random.choice(self._kept())
        return start, min(start + self._random.choice((1, 1, 2, 3, 30)), END)

    def _kept(self) -> list[int]:
        return [hour for hour in HOURS if hour >= self.archive_from]

    def _struck(self, step: Step) -> Step:
        is_struck = self.faulty and self._random.random() < 0.6
        return replace(step, fault=draw_fault(self._random, step)) if is_struck else step
