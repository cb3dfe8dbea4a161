"""Calls the command line in the process of the test, which saves the seconds that imports take."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from rich.console import Console

from monitoring_pipeline.cli.app import main


@dataclass(frozen=True)
class Called:
    """The result of a call: its exit code and its output on stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its output on stderr, in one line and without typer's frame."""
        return " ".join(self.err.replace("│", " ").split())

    def table(self) -> list[list[str]]:
        """The cells of the printed table, its head first."""
        lines = (line.replace("┃", "│").split("│") for line in self.out.splitlines())
        return [[cell.strip() for cell in cells[1:-1]] for cells in lines if len(cells) > 2]


Call = Callable[..., Called]


def run_command(*arguments: str) -> None:
    """Run `monitoring-pipeline` with the arguments, in a process of `forks`."""
    sys.argv = ["monitoring-pipeline", *arguments]
    main()


def calling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *command: str) -> Call:
    """A function that calls `monitoring-pipeline <command>` with arguments, as the console script does."""
    monkeypatch.setattr("monitoring_pipeline.cli.console.console", Console(width=160))
    monkeypatch.setenv("MONITORING_CONFIG", "")  # --config sets it; monkeypatch restores it when the test ends

    def call(*arguments: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["monitoring-pipeline", *command, *arguments])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Called(int(str(code or 0)), captured.out, captured.err)

    return call
