"""Calls of the command line within a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from rich.console import Console

from monitoring_pipeline.cli.app import main


@dataclass(frozen=True)
class Called:
    """How a call ended: exit code, what it printed, and the error in one line."""

    code: int
    out: str
    error: str

    def table(self) -> list[list[str]]:
        """The cells of the printed table, its head first."""
        lines = (line.replace("┃", "│").split("│") for line in self.out.splitlines())
        return [[cell.strip() for cell in cells[1:-1]] for cells in lines if len(cells) > 2]


Call = Callable[..., Called]


def calling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str) -> Call:
    """What calls `monitoring-pipeline <command>` with arguments."""
    monkeypatch.setattr("monitoring_pipeline.cli.console.console", Console(width=160))
    monkeypatch.setenv("MONITORING_CONFIG", "")  # --config sets it; so it is as before when the test ends

    def call(*arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["monitoring-pipeline", command, *arguments])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Called(int(str(code or 0)), captured.out, " ".join(captured.err.replace("│", " ").split()))

    return call
