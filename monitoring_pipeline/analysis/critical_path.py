"""The critical path of a trace: the span that it waits for at each moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monitoring_pipeline.windows import to_microseconds


class PathPart(NamedTuple):
    """A span on the critical path, and its own share of the path, without its children's, in milliseconds."""

    span_id: str
    span_name: str
    span_type: str
    self_ms: float


def critical_path(spans: Sequence[Mapping[str, Any]]) -> list[PathPart]:
    """The critical path of one trace's `spans` (as in `agent_traces`): each span on it once, in order of time.

    At each moment of the root's duration, the path descends from the root to the running child that finishes last, and
    from there on, until a span has no running child; the time counts for that span. So the parts add up to the root's
    duration. The path is computed by walking back from the root's end, as in Z. Zhang et al., CRISP: Critical Path
    Analysis of Large-Scale Microservice Architectures, USENIX ATC 2022.

    If children finish together, the first to begin counts. Time of a span outside its parent does not count; a span
    that outlives its parent finishes with it. A span without an end, as in a truncated trace, lasts as long as its
    descendants; a span that ends before it starts takes no time; a span without a start is left out.

    The root is the first span without a parent, else the first to begin. Other spans whose parent is missing count as
    its children, as does the first to begin of spans whose parents form a cycle. If several spans have one id, the
    first is the parent of their children. Without a span that has a start, the path is empty.
    """
    timed = [span for span in spans if span["start_time"] is not None]
    if not timed:
        return []
    lasted_us: dict[int, int] = {}
    for index, start_us, end_us in reversed([*_walk_back(_tree(timed))]):
        lasted_us[index] = lasted_us.get(index, 0) + end_us - start_us
    return [_part(timed[index], us) for index, us in lasted_us.items()]


@dataclass(frozen=True)
class _Tree:
    """Spans by number: their starts and ends in microseconds, and their children, the last to finish first."""

    root: int
    starts: list[int]
    ends: list[int]
    children: Mapping[int, list[int]]


def _tree(spans: Sequence[Mapping[str, Any]]) -> _Tree:
    starts = [to_microseconds(span["start_time"]) for span in spans]
    by_start = sorted(range(len(spans)), key=lambda number: starts[number])
    root = next((number for number, span in enumerate(spans) if not span["parent_id"]), by_start[0])
    parents = _parents(spans, root)
    children: defaultdict[int, list[int]] = defaultdict(list)
    for number, parent in parents.items():
        children[parent].append(number)

    top_down: dict[int, None] = {}
    for top in [root, *by_start]:
        if top not in top_down:
            if top != root:  # a span that is not below the root is in or below a cycle; cut the cycle here
                children[parents[top]].remove(top)
                children[root].append(top)
            top_down |= dict.fromkeys(_from(top, children))

    ends = [*starts]
    for number in reversed(top_down):
        end = spans[number]["end_time"]
        last = max((ends[child] for child in children[number]), default=0) if end is None else to_microseconds(end)
        ends[number] = max(starts[number], last)
    for number, below in children.items():
        below.sort(key=lambda child: (-min(ends[child], ends[number]), starts[child], child))
    return _Tree(root, starts, ends, children)


def _parents(spans: Sequence[Mapping[str, Any]], root: int) -> dict[int, int]:
    """The parent of each span except the root; the root if the span's parent is missing."""
    first_of: dict[str, int] = {}
    for number, span in enumerate(spans):
        first_of.setdefault(span["span_id"], number)
    found = {number: first_of.get(span["parent_id"], root) for number, span in enumerate(spans) if number != root}
    return {number: root if parent == number else parent for number, parent in found.items()}


def _from(top: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    """The span and its descendants, parents first. Not recursive, because spans may be nested a thousand deep."""
    left = [top]
    while left:
        number = left.pop()
        yield number
        left += children.get(number, ())


@dataclass
class _Walk:
    """The walk back through a span: it is at `at`, ends at `start`, and has yet to visit `children`."""

    span: int
    start: int
    at: int
    children: Iterator[int]


def _walk_back(tree: _Tree) -> Iterator[tuple[int, int, int]]:
    """Segments of the path from its end to its start: the span, and the segment's start and end."""
    walks = [_Walk(tree.root, tree.starts[tree.root], tree.ends[tree.root], iter(tree.children.get(tree.root, ())))]
    while walks:
        walk = walks[-1]
        child = next((child for child in walk.children if tree.starts[child] < walk.at), None)
        if child is None or tree.ends[child] <= walk.start or walk.at == walk.start:
            if walk.start < walk.at:
                yield walk.span, walk.start, walk.at
            walks.pop()
            continue
        start, end = max(tree.starts[child], walk.start), min(tree.ends[child], walk.at)
        if end < walk.at:
            yield walk.span, end, walk.at
        walk.at = start
        walks.append(_Walk(child, start, end, iter(tree.children.get(child, ()))))


def _part(span: Mapping[str, Any], lasted_us: int) -> PathPart:
    return PathPart(span["span_id"], span["name"] or "", span["span_type"] or "UNKNOWN", lasted_us / 1000)
