"""The truth of a schedule: what the source has, and what the lake may hold of each trace. It imports nothing of ours.

A step that completes turns each possibility of a trace into the one that must follow; a step that a fault interrupts
may have done its work on a trace or not, and so adds possibilities. Hours count from the midnight before the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction

SCORER = "grade"
DAY = 24  # hours
DECLINES, FAILS = 7, 11  # the scorer does not apply to multiples of the first, and fails on those of the second


def trace_id(number: int) -> str:
    return f"tr-{number:032x}"


def mark(number: int) -> str:
    """A word that is in the content of this trace alone."""
    return f"quagga{number:05}x"


def user(number: int) -> str:
    """The user of the trace, who has no other."""
    return f"okapi{number:05}x"


def answer(number: int, revision: int) -> str:
    return f"answer {number}, revision {revision}, {mark(number)}"


def sampled(number: int, rate: float, scorer: str = SCORER) -> bool:
    """The documented rule: sha256(f"{trace}:{scorer}") / 2**256 < rate."""
    digest = hashlib.sha256(f"{trace_id(number)}:{scorer}".encode()).digest()
    return Fraction(int.from_bytes(digest, "big"), 2**256) < Fraction(rate)


def duration_ms(number: int) -> int:
    return 5 + number


def has_failed(number: int) -> bool:
    return number % 5 == 0


def outcome(number: int) -> str:
    """What the scorer makes of the trace, as the ledger names it."""
    if number % DECLINES == 0:
        return "not_applicable"
    return "failed" if number % FAILS == 0 else "scored"


def score(version: int, revision: int) -> int:
    return version * 1000 + revision


@dataclass
class Original:
    """A trace at the source. The revision counts its contents; an unreadable trace has spans that are no JSON."""

    hour: int
    revision: int = 1
    exists: bool = True
    is_readable: bool = True


@dataclass(frozen=True)
class Held:
    """What the lake holds of a trace: the archived revision under its hour, a row in quarantine, and results.

    `results` are (version, revision scored) pairs, with revision 0 where the scorer declined. `superseded` has the
    hour in which such a result was replaced as a third part.
    """

    hour: int | None = None
    revision: int | None = None
    in_quarantine: int | None = None  # the hour
    results: frozenset[tuple[int, int]] = frozenset()
    superseded: frozenset[tuple[int, int, int]] = frozenset()


NOTHING = Held()
Change = Callable[[int, Held], Held]


@dataclass
class Truth:
    """The source, and the possibilities of every trace in the lake. Traces in `forgetting` may be half deleted."""

    originals: dict[int, Original] = field(default_factory=dict)
    lake: dict[int, set[Held]] = field(default_factory=dict)
    forgetting: set[int] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)
    archive_from: int = 0
    results_from: int = 0

    def logged(self, number: int, hour: int) -> None:
        self.originals[number] = Original(hour)
        self.lake[number] = {NOTHING}

    def happened(self, change: Change, is_complete: bool = True) -> None:
        """A step that makes `change` ended."""
        for number, possible in self.lake.items():
            changed = {change(number, held) for held in possible}
            self.lake[number] = changed if is_complete else possible | changed

    def happened_together(self, one: Change, other: Change, complete: tuple[bool, bool]) -> None:
        """Two steps ran at once: each is seen by the other or not."""
        before = {number: set(possible) for number, possible in self.lake.items()}
        self.happened(one, complete[0])
        self.happened(other, complete[1])
        after, self.lake = self.lake, before
        self.happened(other, complete[1])
        self.happened(one, complete[0])
        for number, possible in after.items():
            self.lake[number] |= possible

    def archives(self, start: int, end: int) -> Change:
        """Archiving the hours from `start` to before `end`."""

        def change(number: int, held: Held) -> Held:
            trace = self.originals[number]
            if number in self.forgotten or not trace.exists:
                return held
            is_here = start <= trace.hour < end
            if not trace.is_readable:
                return replace(held, in_quarantine=trace.hour) if is_here else held
            was_here = held.revision is not None and start <= (held.hour or 0) < end
            if not is_here and not (was_here and held.hour != trace.hour):
                return held
            return replace(held, hour=trace.hour, revision=trace.revision, in_quarantine=None)

        return change

    def may_misread(self, start: int, end: int) -> Change:
        """A source that answers wrongly: traces that it cannot send go into quarantine until it can."""

        def change(number: int, held: Held) -> Held:
            trace = self.originals[number]
            is_read = trace.exists and start <= trace.hour < end and number not in self.forgotten
            return replace(held, in_quarantine=trace.hour) if is_read else held

        return change

    def scores(self, start: int, end: int, version: int, rate: float) -> Change:
        """Scoring the archived traces of the hours that are in the sample and lack a result for their content."""

        def change(number: int, held: Held) -> Held:
            is_due = held.revision is not None and start <= (held.hour or 0) < end and sampled(number, rate)
            if not is_due or number in self.forgotten:
                return held
            revision = 0 if outcome(number) == "not_applicable" else held.revision or 0
            earlier = {result for result in held.results if result[0] == version}
            if (version, revision) in earlier:
                return held
            moved = {(*result, held.hour or 0) for result in earlier}
            results = held.results - earlier | {(version, revision)}
            return replace(held, results=results, superseded=held.superseded | moved)

        return change

    def expires(self) -> Change:
        """Retention removes all before `archive_from` and `results_from`."""

        def change(number: int, held: Held) -> Held:
            if held.in_quarantine is not None and held.in_quarantine < self.archive_from:
                held = replace(held, in_quarantine=None)
            kept = frozenset(result for result in held.superseded if result[2] >= self.results_from)
            held = replace(held, superseded=kept)
            if held.hour is None or held.hour >= self.archive_from:
                return held
            results = held.results if held.hour >= self.results_from else frozenset()
            return replace(held, revision=None, results=results, hour=held.hour if results else None)

        return change

    def forgets(self, numbers: Iterable[int]) -> None:
        """A deletion for privacy completed."""
        self.forgotten |= {*numbers}
        self.forgetting -= self.forgotten
        for number in numbers:
            self.lake[number] = {NOTHING}
