"""Repairs of a Delta table's log: removes what only speeds up reading and is broken, if the log is whole without it."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from monitoring_pipeline.errors import LakeError, first_line

COMMIT = re.compile(r"(\d{20})\.json")
CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(\..+)?\.parquet")
TEMPORARY = re.compile(r"_commit_.+\.tmp|.+#\d+|\..+\.tmp")  # of commits and checkpoints that were never finished
ABANDONED_S = 3600  # a younger temporary file may belong to a write in progress


def repair(table: Path) -> list[str]:
    """Remove the broken files beside the log of the table in this folder; returns a line for each.

    These are checkpoints that cannot be read, the file that names a checkpoint that is missing or broken, and temporary
    files that are at least an hour old. All other files stay as they are.

    Raises:
        LakeError: the log itself is not whole; nothing was changed.
    """
    log = table / "_delta_log"
    broken = {file: "cannot be read" for file in sorted(log.iterdir()) if _is_broken_checkpoint(file)}
    last = log / "_last_checkpoint"
    if last.exists() and (problem := _problem_of_last(last, set(broken))):
        broken[last] = problem
    for file in sorted(log.iterdir()):
        if TEMPORARY.fullmatch(file.name) and time.time() - file.stat().st_mtime > ABANDONED_S:
            broken[file] = "is left of a write that was killed"
    _check_whole(table, set(broken))
    for file in broken:
        file.unlink()
    return [f"removed {file}: it {problem}" for file, problem in broken.items()]


def _is_broken_checkpoint(file: Path) -> bool:
    if not CHECKPOINT.fullmatch(file.name):
        return False
    try:
        pq.read_table(file, columns=["protocol"])
    except (pa.ArrowException, OSError):
        return True
    return False


def _problem_of_last(last: Path, broken: set[Path]) -> str:
    """What is wrong with the file that names the latest checkpoint; empty if nothing is."""
    found = re.search(r'"version"\s*:\s*(\d+)', last.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        return "names no checkpoint"
    files = [file for file in last.parent.glob(f"{int(found[1]):020}.checkpoint*") if CHECKPOINT.fullmatch(file.name)]
    if not files:
        return f"names checkpoint {found[1]}, which is missing"
    return f"names checkpoint {found[1]}, which cannot be read" if broken.intersection(files) else ""


def _check_whole(table: Path, without: set[Path]) -> None:
    """Raise LakeError unless the table opens at its latest commit without these files."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    kept = [file for file in (table / "_delta_log").iterdir() if file not in without]
    numbered = (COMMIT.fullmatch(file.name) or CHECKPOINT.fullmatch(file.name) for file in kept)
    latest = max((int(found[1]) for found in numbered if found), default=0)
    empty = [file.name for file in kept if COMMIT.fullmatch(file.name) and not file.stat().st_size]
    with tempfile.TemporaryDirectory(prefix="monitoring-log-") as folder:
        view = Path(folder, "_delta_log")
        view.mkdir()
        for file in kept:
            (view / file.name).symlink_to(file.absolute())
        try:
            opened = DeltaTable(folder)
            reason = f"{empty[0]} is empty" if empty else ""
            if opened.version() != latest:
                reason = f"it opens at version {opened.version()}, and its latest file is of {latest}"
        except (DeltaError, OSError) as error:
            reason = first_line(error)
    if reason:
        raise LakeError(
            f"{table}: its log is not whole, and nothing was changed: {reason}; restore the folder from a backup; if "
            "there is none, move it away, which loses its rows"
        )
