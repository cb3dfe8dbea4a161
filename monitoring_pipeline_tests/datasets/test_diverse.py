"""Diverse samples: their size and coverage, and that they do not depend on the order of traces."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.datasets.diverse import Candidate, diverse_sample, latency_bucket
from monitoring_pipeline.errors import MonitoringError


def candidate(
    number: int, status: str = "OK", duration_ms: float | None = 1, tools: str = "", inputs: str = ""
) -> Candidate:
    return Candidate(f"tr-{number}", status, duration_ms, tuple(tools), inputs or f"question {number}")


@st.composite
def populations(draw: st.DrawFn, distinct: bool = True) -> list[Candidate]:
    """Up to 40 candidates of up to 24 strata; with `distinct` inputs, or with a few repeated ones."""
    traits = st.tuples(
        st.sampled_from(["OK", "ERROR"]),
        st.sampled_from([None, 10.0, 2000.0, 9000.0]),
        st.sampled_from(["", "a", "ab", "ba"]),
        st.sampled_from("pqrs"),
    )
    return [
        candidate(number, status, duration, tools, "" if distinct else inputs)
        for number, (status, duration, tools, inputs) in enumerate(draw(st.lists(traits, max_size=40)))
    ]


def strata(candidates: list[Candidate], ids: list[str]) -> Counter[object]:
    by_id = {entry.trace_id: entry.stratum for entry in candidates}
    return Counter(by_id[trace_id] for trace_id in ids)


@given(populations(), st.integers(0, 50), st.integers(0, 3))
def test_a_sample_has_the_requested_size_and_no_trace_twice(candidates: list[Candidate], size: int, seed: int) -> None:
    ids = diverse_sample(candidates, size, seed)
    assert len(ids) == len(set(ids)) == min(size, len(candidates))
    assert set(ids) <= {entry.trace_id for entry in candidates}


@given(populations(), st.integers(1, 50))
def test_strata_have_equal_shares_and_others_fill_up_small_ones(candidates: list[Candidate], size: int) -> None:
    whole = Counter(entry.stratum for entry in candidates)
    drawn = strata(candidates, diverse_sample(candidates, size, 0))
    most = max(drawn.values(), default=0)
    for stratum, there in whole.items():
        assert drawn[stratum] >= min(there, most - 1)  # so all are covered if the size allows it


@given(populations(), st.integers(1, 50))
def test_even_a_small_sample_is_spread_over_statuses_and_latencies(candidates: list[Candidate], size: int) -> None:
    ids = diverse_sample(candidates, size, 0)
    by_id = {entry.trace_id: entry for entry in candidates}
    statuses = {entry.status for entry in candidates}
    assert len({by_id[trace_id].status for trace_id in ids}) == min(len(statuses), len(ids))
    of_status = {status: {entry.stratum[1] for entry in candidates if entry.status == status} for status in statuses}
    if len(ids) >= 2 * max(map(len, of_status.values()), default=0):
        drawn = {by_id[trace_id].stratum[:2] for trace_id in ids}
        assert drawn == {(status, latency) for status, latencies in of_status.items() for latency in latencies}


@given(populations(distinct=False), st.integers(0, 50), st.randoms(use_true_random=False))
def test_the_order_of_the_traces_does_not_matter(candidates: list[Candidate], size: int, chance: random.Random) -> None:
    shuffled = [*candidates]
    chance.shuffle(shuffled)
    assert diverse_sample(candidates, size, 1) == diverse_sample(shuffled, size, 1)
    assert diverse_sample(candidates, size, 1, letters) == diverse_sample(shuffled, size, 1, letters)


@given(populations(), st.integers(0, 40))
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(candidates: list[Candidate], size: int) -> None:
    assert diverse_sample(candidates, size, 5) == diverse_sample(candidates, size + 3, 5)[:size]


@given(populations(distinct=False), st.integers(1, 50))
def test_the_same_inputs_are_drawn_once(candidates: list[Candidate], size: int) -> None:
    ids = diverse_sample(candidates, size, 0)
    by_id = {entry.trace_id: entry.inputs for entry in candidates}
    inputs = [by_id[trace_id] for trace_id in ids]
    assert len(inputs) == len(set(inputs)) == min(size, len({entry.inputs for entry in candidates}))


def test_another_seed_draws_another_sample() -> None:
    candidates = [candidate(number) for number in range(100)]
    samples = {tuple(diverse_sample(candidates, 5, seed)) for seed in range(10)}
    assert len(samples) == 10


def test_over_many_seeds_every_trace_is_drawn_about_equally_often() -> None:
    candidates = [candidate(number) for number in range(10)]
    drawn = Counter(diverse_sample(candidates, 1, seed)[0] for seed in range(2000))
    expected = 2000 / 10
    assert sum((drawn[entry.trace_id] - expected) ** 2 / expected for entry in candidates) < 27.9  # chi², 9 df, 0.1 %


def test_statuses_and_tools_in_order_make_strata() -> None:
    candidates = [*(candidate(number, tools="ab") for number in range(50)), candidate(50, tools="ba")]
    candidates += [candidate(51, "ERROR"), candidate(52, duration_ms=6000), candidate(53, duration_ms=None)]
    ids = diverse_sample(candidates, 5, 0)
    assert {"tr-50", "tr-51", "tr-52", "tr-53"} < set(ids)


@pytest.mark.parametrize(
    ("duration_ms", "bucket"),
    [(0, "fast"), (999.9, "fast"), (1000, "medium"), (4999.9, "medium"), (5000, "slow"), (None, "unknown")],
)
def test_latency_buckets(duration_ms: float | None, bucket: str) -> None:
    assert latency_bucket(duration_ms) == bucket


# Meaning


def letters(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), float(sum(map(ord, text)))] for text in texts]


def on_a_line(texts: list[str]) -> list[list[float]]:
    return [[float(text)] for text in texts]


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=30, unique=True), st.integers(1, 8), st.integers(0, 5))
def test_the_covering_radius_of_meaning_is_at_most_twice_the_optimum(places: list[int], size: int, seed: int) -> None:
    candidates = [candidate(number, inputs=str(place)) for number, place in enumerate(places)]
    inputs = {entry.trace_id: float(entry.inputs) for entry in candidates}
    chosen = [inputs[trace_id] for trace_id in diverse_sample(candidates, size, seed, on_a_line)]
    radius = max(min(abs(place - centre) for centre in chosen) for place in places)
    assert radius <= 2 * best_radius(sorted(places), size) + 1e-9


def best_radius(places: list[int], centres: int) -> float:
    """The smallest radius at which that many places cover all places, found by trying every distance."""

    def needed(radius: int) -> int:
        count, index = 0, 0
        while index < len(places):
            count += 1
            left = places[index]
            centre = max(place for place in places if place <= left + radius)
            index = next((at for at, place in enumerate(places) if place > centre + radius), len(places))
        return count

    radii = sorted({abs(one - other) for one in places for other in places})
    return next(radius for radius in radii if needed(radius) <= centres)


def test_a_distant_meaning_is_drawn_before_a_close_one() -> None:
    candidates = [*(candidate(number, inputs=str(number)) for number in range(1, 20)), candidate(20, inputs="1000")]
    for seed in range(10):
        assert "tr-20" in diverse_sample(candidates, 2, seed, on_a_line)


@pytest.mark.parametrize(
    "vectors", [[[1.0]], [1.0, 2.0, 3.0], [[1.0], [2.0], [np.nan]], [[1.0], [2.0], [3.0, 4.0]], ["a", "b", "c"], None]
)
def test_an_embedding_that_returns_no_vectors_is_refused(vectors: Any) -> None:
    with pytest.raises(
        MonitoringError, match="the embedding function must return one vector of finite numbers for each of 3 texts"
    ):
        diverse_sample([candidate(number) for number in range(3)], 2, 0, lambda texts: vectors)
