"""Two works that differ, in a module that new processes import quickly."""

from __future__ import annotations

from collections.abc import Generator


def one() -> Generator[None, None, int]:
    yield
    yield
    return 1


def two() -> Generator[None, None, int]:
    yield
    yield
    return 2
