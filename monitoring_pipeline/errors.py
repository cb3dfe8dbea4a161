"""Errors that a user can fix: each message names the wrong value and the fix, on one or more lines."""

from __future__ import annotations

from collections.abc import Iterable

REASON_CHARACTERS = 300  # of another program's error that a message of ours quotes


class MonitoringError(Exception):
    """A problem outside the code: in the configuration, a server, a folder."""


class SettingsError(MonitoringError):
    """The configuration is invalid; `problems` has one line per problem."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class TrackingError(MonitoringError):
    """The MLflow store cannot be used: unreachable, missing, or without a named experiment."""


class EngineError(MonitoringError):
    """The Spark engine cannot be reached."""


class LakeError(MonitoringError):
    """The lake cannot be opened or written."""


def one_line(error: object) -> str:
    """Return the text of the error on one line, with single spaces."""
    return " ".join(str(error).split())


def is_panic(error: BaseException) -> bool:
    """Return whether the error is a panic of a library in Rust; such errors are no Exceptions."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text, or the name of its type if the text is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
