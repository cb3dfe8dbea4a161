"""Helpers that the functions of the API share."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from monitoring_pipeline.errors import MonitoringError

if TYPE_CHECKING:
    from monitoring_pipeline.settings import Settings
    from monitoring_pipeline.windows import Window

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**new_by_old: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Accept the former names of keyword arguments, with a DeprecationWarning."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in new_by_old.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got both {new!r} and {old!r}, its former name")
                message = f"{function.__name__}(): {old!r} is now {new!r}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def window_of(settings: Settings, start: datetime | None, end: datetime | None) -> Window:
    """The whole hours from `start` to `end`; defaults are those of `whole_hours`.

    Raises:
        MonitoringError: the start is not before the end, or before the archive's.
    """
    from monitoring_pipeline.settings.hours import whole_hours

    try:
        return whole_hours(settings, start.astimezone(UTC) if start else None, end.astimezone(UTC) if end else None)
    except ValueError as error:
        raise MonitoringError(str(error)) from error
