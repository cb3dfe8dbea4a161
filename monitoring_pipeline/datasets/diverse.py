"""Diverse sampling of traces by status, latency, order of tools and, optionally, meaning."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np

FAST_MS, MEDIUM_MS = 1000, 5000
Embed: TypeAlias = Callable[[list[str]], Sequence[Sequence[float]]]
Stratum: TypeAlias = tuple[str, str, tuple[str, ...]]
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A trace that may be drawn: its status, duration, tool names in order, and inputs as text."""

    trace_id: str
    status: str
    duration_ms: float | None
    tools: tuple[str, ...]
    inputs: str

    @property
    def stratum(self) -> Stratum:
        """Status, latency bucket and tools, which together define a stratum."""
        return self.status, latency_bucket(self.duration_ms), self.tools


def latency_bucket(duration_ms: float | None) -> str:
    """Return fast (under 1 s), medium (under 5 s), slow, or unknown."""
    if duration_ms is None:
        return "unknown"
    return "fast" if duration_ms < FAST_MS else "medium" if duration_ms < MEDIUM_MS else "slow"


def diverse_sample(
    candidates: Iterable[Candidate], sample_size: int, seed: int, embed: Embed | None = None
) -> list[str]:
    """Return the ids of at most `sample_size` candidates with distinct inputs, in the order of drawing.

    Strata take turns, one trace each, so that a large enough sample covers every stratum, and larger strata make up for
    exhausted ones. Statuses take turns before latencies, and latencies before tools, so that even a sample with fewer
    traces than strata is spread. Within a stratum the order is random; with `embed`, which returns a vector per text of
    inputs, the next trace is the one farthest from the traces already drawn (Gonzalez's greedy k-centre, 1985,
    Euclidean distance).

    The sample depends on the candidates and the seed, not on the order of the candidates.
    """
    strata: defaultdict[Stratum, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda candidate: _lot(seed, candidate.trace_id)):
        strata[candidate.stratum].append(candidate)
    queues = [_draws(strata[stratum], sample_size, embed) for stratum in _spread(strata, seed)]
    drawn: dict[str, str] = {}  # inputs -> trace id
    for candidate in _in_turns(queues):
        if len(drawn) == sample_size:
            break
        drawn.setdefault(candidate.inputs, candidate.trace_id)
    return list(drawn.values())


def _lot(seed: int, *what: str) -> str:
    return hashlib.sha256("\x00".join((str(seed), *what)).encode("utf-8", "surrogatepass")).hexdigest()


def _spread(strata: dict[Stratum, list[Candidate]], seed: int) -> list[Stratum]:
    """All strata, ordered so that the first ones differ as much as possible; larger strata come first."""

    def order(some: list[Stratum], level: int) -> list[Stratum]:
        if level == len(some[0]):
            return some
        groups: defaultdict[str | tuple[str, ...], list[Stratum]] = defaultdict(list)
        for stratum in some:
            groups[stratum[level]].append(stratum)
        ordered = sorted(groups.values(), key=lambda group: (-size(group), _lot(seed, *map(repr, group[0]))))
        return list(_in_turns([order(group, level + 1) for group in ordered]))

    def size(some: list[Stratum]) -> int:
        return sum(len(strata[stratum]) for stratum in some)

    return order(sorted(strata), 0) if strata else []


def _in_turns(queues: Iterable[Iterable[T]]) -> Iterator[T]:
    """The first of each, then the second of each, and so on."""
    missing = object()
    for turn in zip_longest(*queues, fillvalue=missing):
        yield from (item for item in turn if item is not missing)  # type: ignore[misc]


def _draws(members: list[Candidate], most: int, embed: Embed | None) -> list[Candidate]:
    """At most `most` members of a stratum in the order of drawing, one for each distinct input."""
    by_inputs: dict[str, Candidate] = {}
    for member in members:
        by_inputs.setdefault(member.inputs, member)
    distinct = list(by_inputs.values())
    if embed is None or len(distinct) < 3:
        return distinct[:most]
    return [distinct[index] for index in _farthest_first(_vectors(embed, distinct), most)]


def _vectors(embed: Embed, members: list[Candidate]) -> np.ndarray:
    import numpy as np

    from monitoring_pipeline.errors import MonitoringError

    given = embed([member.inputs for member in members])
    try:
        vectors = np.asarray(given, dtype=float)
    except (TypeError, ValueError):  # vectors of different lengths, or not numbers
        vectors = np.empty(0)
    if vectors.ndim != 2 or len(vectors) != len(members) or not np.isfinite(vectors).all():
        raise MonitoringError(
            f"the embedding function must return one vector of finite numbers for each of {len(members)} texts, all of "
            f"the same length; it returned {given!r:.80}"
        )
    return vectors


def _farthest_first(vectors: np.ndarray, most: int) -> list[int]:
    """Index 0, then repeatedly the vector farthest from its nearest chosen one; ties go to the lowest index."""
    import numpy as np

    chosen = [0]
    distances = np.linalg.norm(vectors - vectors[0], axis=1)
    distances[0] = -1
    while len(chosen) < min(most, len(vectors)):
        index = int(distances.argmax())
        chosen.append(index)
        distances = np.minimum(distances, np.linalg.norm(vectors - vectors[index], axis=1))
        distances[chosen] = -1
    return chosen
