"""How a command ends that raises an error: one line if it can be, a traceback if the fault is in this package.

A library's error says what went wrong outside, such as a server that answers nonsense or a full disk. An error that is
raised by our own code is a fault to be reported, so its traceback is printed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from monitoring_pipeline.cli.common import printable
from monitoring_pipeline.errors import MonitoringError, first_line, one_line

TRACEBACK = "MONITORING_TRACEBACK"  # an environment variable: if it is set, each error has its traceback
LONGEST = 500  # of a library's message
PACKAGE = Path(__file__).parents[1]


def report(error: BaseException) -> None:
    """Print the error to stderr; MONITORING_TRACEBACK=1 in the environment adds the traceback of any error."""
    is_expected = isinstance(error, MonitoringError)
    wanted = os.environ.get(TRACEBACK, "") not in ("", "0")
    if wanted or not (is_expected or _is_of_library(error)):
        for line in _hidden("".join(traceback.format_exception(error))).splitlines():
            print(printable(line), file=sys.stderr)
    for line in str(error).splitlines() if is_expected else [_summary(error)]:
        print(f"error: {printable(line)}", file=sys.stderr)


def _is_of_library(error: BaseException) -> bool:
    """Whether the code that raised the error is none of ours, which compiled code shows only by the error's type."""
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] not in ("builtins", PACKAGE.name):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and not Path(frames[-1].filename).is_relative_to(PACKAGE)


def _summary(error: BaseException) -> str:
    text = one_line(_hidden(first_line(error)))[:LONGEST]
    if not _is_of_library(error):
        return f"{type(error).__name__}: {text}; this is a fault of monitoring-pipeline, please report it"
    return f"{type(error).__name__}: {text}; {TRACEBACK}=1 shows where it comes from"


def _hidden(text: str) -> str:
    """The text without the secrets that it may repeat."""
    from monitoring_pipeline.settings import without_password
    from monitoring_pipeline.text import without_secrets

    return without_password(without_secrets(text))
