"""Folders that hold trace content or state: whoever else uses the machine has no access to those that we make."""

from __future__ import annotations

from pathlib import Path

PRIVATE = 0o700


def make_private(folder: Path) -> None:
    """Create the folder and its missing parents for this user alone; existing ones keep their permissions.

    Raises:
        OSError: a folder cannot be created, or a file is in its place.
    """
    if not folder.parent.exists():
        make_private(folder.parent)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
