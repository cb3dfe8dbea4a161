"""What delta-rs and Arrow raise, as errors of the lake in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from monitoring_pipeline import __version__
from monitoring_pipeline.errors import LakeError, first_line, is_panic

REPAIR = "call `monitoring-pipeline upkeep --repair`, which says what is wrong and mends what can be"
VERSION = "monitoring_pipeline.version"  # a property of each table: the version that made it or added its last column


@contextmanager
def lake_errors(action: str, path: str) -> Iterator[None]:
    """Raise errors of delta-rs, Arrow and the file system as LakeError: "cannot <action> <path>: <reason>; <fix>"."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise LakeError(f"cannot {action} {path}: {_reason(error)}; {_fix(error, action, path)}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise LakeError(f"cannot {action} {path}: {_reason(error)}; {_fix(error, action, path)}") from error


def is_unsupported(error: BaseException) -> bool:
    """Return whether the table requires what delta-rs does not have."""
    return "Unsupported" in str(error)


def check_version(path: str, properties: dict[str, str]) -> None:
    """Return unless a newer version of this package made the table or added a column.

    Raises:
        LakeError: it did; this version could misread the table.
    """
    theirs = properties.get(VERSION, __version__)
    if _numbers(theirs) > _numbers(__version__):
        raise LakeError(
            f"cannot open {path}: monitoring-pipeline {theirs} wrote it, and this is {__version__}; install {theirs} "
            "or newer"
        )


def _numbers(version: str) -> list[int]:
    """The parts that change when tables do: before 1.0 these are the first two, see CHANGELOG.md."""
    return [int(part) for part in version.split(".")[:2]]


def _reason(error: BaseException) -> str:
    return first_line(error).rstrip(".:; ")


def _fix(error: BaseException, action: str, path: str) -> str:
    import deltalake

    if is_unsupported(error):
        return f"another program uses a newer Delta Lake there than deltalake {deltalake.__version__} here; upgrade it"
    if action == "open" and _has_log(path):
        return REPAIR
    return f"check [lake] location{', and the space and permissions there' if action == 'write' else ''}"


def _has_log(path: str) -> bool:
    try:
        return Path(path, "_delta_log").is_dir()
    except OSError:  # the path is too long
        return False
