"""The reference matches the code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

from monitoring_pipeline import api
from monitoring_pipeline.cli.app import app
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.tables import TABLES
from monitoring_pipeline_tests.docs.conftest import documentation

SCRIPT = documentation().parent / "scripts" / "make-reference"
AGAIN = "docs/reference.md is not what the code says; make it again: .venv/bin/python scripts/make-reference"


def test_the_page_matches_the_code(tmp_path: Path) -> None:
    made = tmp_path / "reference.md"
    subprocess.run([sys.executable, SCRIPT, made], check=True)
    assert made.read_text() == (documentation() / "reference.md").read_text(), AGAIN


def test_nothing_is_left_out() -> None:
    lines = set((documentation() / "reference.md").read_text().splitlines())
    assert [name for name in api.__all__ if f"#### {name}" not in lines] == []
    assert [table.name for table in TABLES if f"### {table.name}" not in lines] == []
    sections = [name for name in Settings.model_fields if not lines & {f"### [{name}]", f"### [[{name}]]"}]
    assert sections == []


def test_every_setting_has_a_description() -> None:
    assert [name for name, description in described(Settings) if not description] == []


def test_help_shows_all_of_its_text() -> None:
    """Typer treats text in brackets as markup and does not show it."""
    texts = [help for command in every_command(typer.main.get_command(app)) for help in helps_of(command)]
    assert len(texts) > 50
    assert [text for text in texts if "[" in text] == []


def every_command(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from every_command(inner)


def helps_of(command: Any) -> list[str]:
    return [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]


def described(section: Any, name: str = "") -> Iterator[tuple[str, str | None]]:
    """The keys below the section that have a value, with their descriptions."""
    for key, field in section.model_fields.items():
        inner = next((kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)), None)
        if inner is None:
            yield f"{name}{key}", field.description
        else:
            yield from described(inner, f"{name}{key}.")


def is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
