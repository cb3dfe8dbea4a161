"""The critical path against its definition, moment by moment."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.analysis.critical_path import critical_path

START = datetime(2026, 1, 1, 5, tzinfo=UTC)


def span(name: str, start_ms: int | None, end_ms: int | None, parent: str | None = None, **more: Any) -> dict[str, Any]:
    def moment(ms: int | None) -> datetime | None:
        return None if ms is None else START + timedelta(milliseconds=ms)

    times = {"start_time": moment(start_ms), "end_time": moment(end_ms)}
    return {"span_id": name, "name": name, "span_type": "TOOL", "parent_id": parent, **times, **more}


def path(*spans: dict[str, Any]) -> list[tuple[str, float]]:
    return [(part.span_id, part.self_ms) for part in critical_path(spans)]


ROOT = span("root", 0, 100)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([ROOT], [("root", 100)]),
        ([ROOT, span("a", 10, 40, "root"), span("b", 50, 90, "root")], [("root", 30), ("a", 30), ("b", 40)]),
        ([ROOT, span("a", 10, 60, "root"), span("b", 30, 90, "root")], [("root", 20), ("a", 20), ("b", 60)]),
        ([ROOT, span("a", 10, 90, "root"), span("b", 30, 60, "root")], [("root", 20), ("a", 80)]),
        ([ROOT, span("b", 20, 90, "root"), span("a", 10, 90, "root")], [("root", 20), ("a", 80)]),
        ([ROOT, span("a", 10, 80, "root"), span("b", 20, 70, "a")], [("root", 30), ("a", 20), ("b", 50)]),
        # outside their parents
        ([ROOT, span("a", 60, 900, "root")], [("root", 60), ("a", 40)]),
        ([ROOT, span("a", -50, 30, "root")], [("a", 30), ("root", 70)]),
        ([ROOT, span("a", 100, 120, "root"), span("b", -9, 0, "root")], [("root", 100)]),
        ([ROOT, span("a", 10, 50, "root"), span("b", 20, 80, "a")], [("root", 60), ("a", 10), ("b", 30)]),
        ([ROOT, span("a", 0, 200, "root"), span("b", 10, 300, "root")], [("a", 100)]),
        # ends and starts that are missing or swapped
        ([span("root", 0, None)], []),
        ([span("root", 0, None), span("a", 10, 40, "root")], [("root", 10), ("a", 30)]),
        ([ROOT, span("a", 10, None, "root"), span("b", 20, 60, "a")], [("root", 50), ("a", 10), ("b", 40)]),
        ([ROOT, span("a", 10, None, "root")], [("root", 100)]),
        ([ROOT, span("a", 50, 20, "root")], [("root", 100)]),
        ([ROOT, span("a", None, 50, "root"), span("b", 20, 60, "a")], [("root", 60), ("b", 40)]),
        ([span("root", None, None)], []),
        ([], []),
        # malformed trees
        ([ROOT, span("a", 10, 40, "gone")], [("root", 70), ("a", 30)]),
        ([ROOT, span("other", 10, 40), span("a", 20, 30, "other")], [("root", 70), ("other", 20), ("a", 10)]),
        ([span("a", 20, 40, "gone"), span("b", 10, 90, "gone")], [("b", 60), ("a", 20)]),
        ([ROOT, span("a", 10, 40, "b"), span("b", 20, 30, "a")], [("root", 70), ("a", 20), ("b", 10)]),
        ([span("a", 10, 40, "b"), span("b", 20, 30, "a")], [("a", 20), ("b", 10)]),
        ([ROOT, span("a", 10, 40, "a")], [("root", 70), ("a", 30)]),
        ([span("root", 0, 100, "root"), span("a", 10, 40, "root")], [("root", 70), ("a", 30)]),
        ([ROOT, span("a", 10, 40, "root"), span("a", 50, 60, "root"), span("b", 20, 55, "a")],
         [("root", 60), ("a", 10), ("b", 20), ("a", 10)]),
    ],
)  # fmt: skip
def test_the_path(spans: list[dict[str, Any]], expected: list[tuple[str, float]]) -> None:
    assert path(*spans) == expected


def test_missing_names_and_types() -> None:
    [part] = critical_path([span("root", 0, 1) | {"name": None, "span_type": None}])
    assert part == ("root", "", "UNKNOWN", 1.0)


@st.composite
def trees(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A root and up to nine spans below it or each other, with any times; some without an end."""
    spans = [span("0", 0, draw(st.integers(0, 30)))]
    for number in range(1, draw(st.integers(1, 10))):
        start = draw(st.integers(-5, 30))
        end = draw(st.none() | st.integers(start - 3, 35))
        spans.append(span(str(number), start, end, str(draw(st.integers(0, number - 1)))))
    order = draw(st.permutations(spans))
    return sorted(order, key=lambda span: span["parent_id"] is not None)


def by_moments(spans: list[dict[str, Any]]) -> Counter[str]:
    """The path by the definition in the docstring, at the middle of each millisecond of the root."""

    def ms(moment: datetime) -> float:
        return (moment - START) / timedelta(milliseconds=1)

    def end_of(one: dict[str, Any]) -> float:
        if one["end_time"] is not None:
            return max(ms(one["start_time"]), ms(one["end_time"]))
        return max([ms(one["start_time"]), *(end_of(child) for child in below(one))])

    def below(one: dict[str, Any]) -> list[dict[str, Any]]:
        return [child for child in spans if child["parent_id"] == one["span_id"]]

    def at(moment: float, one: dict[str, Any]) -> str:
        begun = [child for child in below(one) if ms(child["start_time"]) < moment]
        # max takes the first of equal spans, which is the first given if they also start together
        last = max(begun, key=lambda child: (min(end_of(child), end_of(one)), -ms(child["start_time"])), default=None)
        return at(moment, last) if last and end_of(last) > moment else one["span_id"]

    return Counter(at(tick + 0.5, spans[0]) for tick in range(int(end_of(spans[0]))))


@given(trees())
def test_the_path_equals_the_one_found_by_brute_force(spans: list[dict[str, Any]]) -> None:
    assert dict(path(*spans)) == by_moments(spans)


MOMENTS = st.none() | st.integers(-5, 30)
ANY_SPAN = st.tuples(st.integers(0, 5), MOMENTS, MOMENTS, st.none() | st.integers(0, 6))


@given(st.lists(ANY_SPAN, max_size=12))
def test_the_parts_add_up_to_the_root_for_any_spans(
    spans: list[tuple[int, int | None, int | None, int | None]],
) -> None:
    """Spans with repeated ids, missing parents and cycles; the root has a unique id, a start and an end."""
    others = [span(str(name), start, end, None if up is None else str(up)) for name, start, end, up in spans]
    parts = critical_path([span("root", 3, 20), *others])
    assert sum(part.self_ms for part in parts) == 17
    assert all(part.self_ms > 0 for part in parts)


@pytest.mark.parametrize("shape", ["deep", "wide"])
def test_thirty_thousand_spans_take_seconds_at_most(shape: str) -> None:
    count = 30_000
    spans = [span("0", 0, 2 * count)]
    spans += [span(str(n), n, 2 * count - n, str(n - 1) if shape == "deep" else "0") for n in range(1, count)]
    started = time.perf_counter()
    parts = critical_path(spans)
    assert time.perf_counter() - started < 5
    assert sum(part.self_ms for part in parts) == 2 * count
    assert len(parts) == (count if shape == "deep" else 2)
