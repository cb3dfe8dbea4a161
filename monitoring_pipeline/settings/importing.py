"""The folders that scorers are imported from, besides the installed packages."""

from __future__ import annotations

import sys
from collections.abc import Iterable

_added: list[str] = []


def make_importable(folders: Iterable[str]) -> None:
    """Add the folders to the end of sys.path, where they hide no installed package."""
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
        if folder not in _added:
            _added.append(folder)


def added_folders() -> list[str]:
    """The folders that this process has added, for other processes that import the same scorers."""
    return [*_added]
