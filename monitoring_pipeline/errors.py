"""What a user can mend: each error is a line (or some) that names the value and says what to do."""

from __future__ import annotations

from collections.abc import Iterable


class MonitoringError(Exception):
    """Something outside the code is wrong: the configuration, a server, a folder."""


class SettingsError(MonitoringError):
    """The configuration cannot be used; `problems` holds one line for each thing to fix."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class TrackingError(MonitoringError):
    """The MLflow store cannot be used: unreachable, missing, or without a named experiment."""


class EngineError(MonitoringError):
    """The Spark engine cannot be reached."""


class LakeError(MonitoringError):
    """The lake cannot be opened or written."""


def first_line(error: Exception) -> str:
    """The first line of the error's text, or the name of its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
