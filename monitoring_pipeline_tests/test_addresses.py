"""Where the servers listen that `make ui` and `deploy/start` start: neither Dagster nor MLflow has a login."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from dagster_webserver.cli import DEFAULT_WEBSERVER_HOST

ROOT = Path(__file__).resolve().parents[1]


def commands() -> dict[str, str]:
    """The command of each program of a deployment that serves a port."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=None)
    parser.read(ROOT / "deploy" / "supervisord.conf")
    found = {name: parser.get(name, "command") for name in parser.sections() if name.startswith("program:")}
    return {name: command for name, command in found.items() if "--port" in command}


@pytest.mark.parametrize("program", ["program:mlflow", "program:code", "program:webserver"])
def test_a_server_of_a_deployment_listens_on_loopback(program: str) -> None:
    assert re.findall(r"--host (\S+)", commands()[program]) == ["127.0.0.1"]


def test_no_other_program_of_a_deployment_serves_a_port() -> None:
    assert sorted(commands()) == ["program:code", "program:mlflow", "program:webserver"]


def test_make_ui_leaves_dagster_on_loopback() -> None:
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "/dagster dev" in line]
    assert "--host" not in line
    assert DEFAULT_WEBSERVER_HOST == "127.0.0.1"
