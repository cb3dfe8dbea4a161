"""The pages are valid: links have targets, commands and settings exist, Python can be imported."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from monitoring_pipeline.cli.app import app
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline_tests.docs.conftest import documentation

ROOT = documentation().parent
PAGES = [ROOT / "README.md", *sorted(documentation().rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Scorers and notifiers that alerts and datasets on the pages refer to
SAFETY = '[[scorers]]\nname = "safety"\nbuiltin = "Safety"\nmodel = "openai:/gpt-4.1-mini"\n'


def of_pages(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The code blocks in one of the languages, without the indentation of list items."""
    text = page.read_text(encoding="utf-8")
    for margin, language, block in re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield re.sub(rf"^{margin}", "", block, flags=re.MULTILINE)


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@of_pages(PAGES)
def test_links_have_targets(page: Path) -> None:
    for link in LINK.findall(re.sub("```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target), link


def commands_of(page: Path) -> list[list[str]]:
    """The words after `monitoring-pipeline` in every line that calls it, and in inline code."""
    lines = [line for block in blocks(page, "", "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text(encoding="utf-8"))
    called = [re.split(r"(?:^|/| )monitoring-pipeline ", line, maxsplit=1) for line in [*lines, *inline]]
    return [shlex.split(words[1], comments=True) for words in called if len(words) == 2]


@of_pages([page for page in PAGES if page.name != "reference.md" and commands_of(page)])
def test_commands_exist_with_these_options(page: Path) -> None:
    for words in commands_of(page):
        if words[0] in ("…", "--help"):
            continue
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            subcommands = command.commands  # type: ignore[attr-defined]
            assert words[0] in subcommands, words
            command = subcommands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in options] == []


@of_pages([page for page in PAGES if any(blocks(page, "toml"))])
def test_settings_are_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_scorers.py").write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    file = tmp_path / "monitoring.toml"
    for block in blocks(page, "toml"):
        file.write_text(block if "[[scorers]]" in block else f"{block}\n{SAFETY}", encoding="utf-8")
        load_settings(file)


@of_pages([page for page in PAGES if any(blocks(page, "python")) and page.name != "reference.md"])
def test_python_is_valid_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.replace("…", "..."))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("monitoring_pipeline"):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
