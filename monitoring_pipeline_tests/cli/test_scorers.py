"""`monitoring-pipeline scorers` as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from monitoring_pipeline import lifecycle
from monitoring_pipeline.lifecycle.scorer_handles import history
from monitoring_pipeline.settings import load_settings
from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.sources.stores import Store

COMMAND = str(Path(sys.executable).parent / "monitoring-pipeline")
CODE = "monitoring_pipeline.scoring.scorers:tool_errors"
SCORERS = f"""
[[scorers]]
name = "order_number"
builtin = "RegexMatch"
params = {{ pattern = "#W" }}

[[scorers]]
name = "long"
scorer = "{CODE}"
sample_rate = 0.5
filter = "tags.env = '[bold]prod[/]'"
"""


@pytest.fixture
def config(store: Store, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of the working folder, with two scorers."""
    name = request.node.name
    MlflowClient(store.uri).create_experiment(name, artifact_location=tmp_path.as_uri())
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "monitoring.toml"
    file.write_text(f'[mlflow]\ntracking_uri = "{store.uri}"\n[scoring]\nexperiment = "{name}"\n{SCORERS}')
    return file


@pytest.fixture
def call(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling(monkeypatch, capsys, "scorers")


def test_apply_prints_the_plan_and_applies_it_once(call: Call, config: Path) -> None:
    rehearsed = call("apply", "--dry-run")
    assert rehearsed.code == 0
    assert {handle.revision for handle in lifecycle.handles()} == {0}

    done = call("apply")
    assert done.code == 0
    digests = [handle.digest for handle in lifecycle.handles()]
    assert rehearsed.out.splitlines() == [
        "+ order_number",
        "    state: active",
        "    sample_rate: 1.0",
        f"    digest: {digests[0]}",
        "+ long",
        "    state: active",
        "    sample_rate: 0.5",
        "    filter: tags.env = '[bold]prod[/]'",
        f"    digest: {digests[1]}",
        "Plan: 2 to create, 0 to change, 0 to delete, 0 unchanged.",
    ]
    assert done.out.startswith(rehearsed.out)
    note, applied = done.out.removeprefix(rehearsed.out).splitlines()
    assert note.startswith("note: long runs here, but is not in MLflow's own registry: MlflowException: Custom")
    assert applied == "Applied."
    assert {handle.state.value for handle in lifecycle.handles()} == {"active"}

    assert call("apply").out == "Plan: 0 to create, 0 to change, 0 to delete, 2 unchanged.\n"


def test_apply_changes_and_deletes(call: Call, config: Path) -> None:
    call("apply")
    text = config.read_text()
    config.write_text(text[: text.index("[[scorers]]")] + '[[scorers]]\nname = "long"\n' + f'scorer = "{CODE}"\n')

    assert call("apply").out.splitlines()[:8] == [
        "~ long",
        "    sample_rate: 0.5 -> 1.0",
        "    filter: tags.env = '[bold]prod[/]' -> none",
        "- order_number",
        "    state: active",
        "    sample_rate: 1.0",
        f"    digest: {history('order_number')[0].standing.digest}",
        "Plan: 0 to create, 1 to change, 1 to delete, 0 unchanged.",
    ]
    assert [(handle.name, handle.sample_rate) for handle in lifecycle.handles()] == [("long", 1.0)]


def test_list_shows_every_scorer_untruncated(call: Call, config: Path) -> None:
    filter = "tags.env = '[bold]prod[/]' AND " + " AND ".join(f"tags.key_{number} = 'value'" for number in range(20))
    config.write_text(config.read_text().replace("tags.env = '[bold]prod[/]'", filter))
    call("apply")
    config.write_text(config.read_text().replace('"#W"', '"#X"'))
    shown = call("list").out.splitlines()

    order, long = lifecycle.handles()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown if "│" in line]
    assert cells == [
        [
            "order_number",
            "active",
            "1",
            "",
            "1",
            order.registered_digest,
            f"changed, now {order.digest}",
            f"{order.changed_at:%Y-%m-%d %H:%M:%S}",
        ],
        ["long", "active", "0.5", filter, "1", long.digest, "as registered", f"{long.changed_at:%Y-%m-%d %H:%M:%S}"],
    ]


def test_a_scorer_is_stopped_started_updated_and_deleted_and_history_lists_it(call: Call) -> None:
    call("apply")

    assert call("stop", "order_number").out == "order_number: active -> stopped, rate 1, filter none\n"
    started = call("start", "order_number", "--sample-rate", "0.25", "--filter", "tags.a = '[b]'")
    assert started.out == "order_number: stopped -> active, rate 0.25, filter tags.a = '[b]'\n"
    assert call("update", "order_number", "--sample-rate", "0.5").out.endswith("rate 0.5, filter tags.a = '[b]'\n")
    assert call("update", "order_number", "--filter", "").out == "order_number: active, rate 0.5, filter none\n"
    assert call("delete", "order_number").out == "order_number: active -> unregistered\n"

    shown = call("history", "order_number").out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown if "│" in line]
    changes = history("order_number")
    assert [row[1] for row in cells] == [f"{change.changed_at:%Y-%m-%d %H:%M:%S}" for change in changes]
    assert [(row[0], *row[2:7], *row[8:]) for row in cells] == [
        ("1", "apply", "active", "1", "", "1", "1", "yes"),
        ("2", "stop", "stopped", "1", "", "1", "1", "yes"),
        ("3", "start", "active", "0.25", "tags.a = '[b]'", "1", "1", "yes"),
        ("4", "update", "active", "0.5", "tags.a = '[b]'", "1", "1", "yes"),
        ("5", "update", "active", "0.5", "", "1", "1", "yes"),
        ("6", "delete", "unregistered", "0.5", "", "1", "1", "yes"),
    ]


def test_a_filter_cannot_control_the_terminal(call: Call) -> None:
    lifecycle.handle("long").register().update(filter="tags.a = '\x1b[2J\n'")
    assert "\x1b" not in call("list").out
    assert "tags.a = '�[2J�'" in call("history", "long").out


@pytest.mark.parametrize("command", ["start", "update", "stop", "delete", "history"])
def test_an_unknown_name_is_wrong_usage_and_names_the_known_ones(call: Call, command: str) -> None:
    done = call(command, "lnog", *(["--sample-rate", "1"] if command == "update" else []))
    assert done.code == 2
    assert "no scorer 'lnog'; existing scorers: order_number, long" in done.error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("start", "long"), 1, "error: cannot start scorer 'long': it is unregistered; call register()"),
        (("stop", "long"), 1, "error: cannot stop scorer 'long': it is unregistered; call register()"),
        (("update", "long"), 2, "nothing to update: give --sample-rate, --filter or both"),
        (("update", "long", "--sample-rate", "1.5"), 2, "Invalid value for '--sample-rate'"),
        (("update", "long", "--sample-rate", "nan"), 2, "Invalid value for '--sample-rate'"),
    ],
)
def test_errors_are_reported_in_one_line(call: Call, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = call(*arguments)
    assert done.code == code
    assert message in done.error
    assert lifecycle.handle("long").revision == 0


def test_a_filter_that_mlflow_does_not_accept_is_reported(call: Call) -> None:
    lifecycle.handle("long").register()
    done = call("start", "long", "--filter", "nonsense")
    assert done.code == 1
    assert done.error.startswith("error: scorer 'long': trace filter 'nonsense': ")


def test_a_missing_experiment_is_reported_in_one_line(call: Call, config: Path) -> None:
    config.write_text(config.read_text().replace('experiment = "', 'experiment = "no '))
    done = call("list")
    assert done.code == 1
    assert done.error.endswith("which does not exist; create it, or set [scoring] experiment to another")


def test_another_process_with_the_same_configuration_changes_the_same_scorer(call: Call, config: Path) -> None:
    call("apply")
    handle = lifecycle.handle("long", load_settings(config))
    done = subprocess.run(
        [COMMAND, "scorers", "stop", "long", "--config", str(config)],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "long: active -> stopped, rate 0.5, filter tags.env = '[bold]prod[/]'\n"
    with pytest.raises(lifecycle.StaleHandleError, match="by 'stop', revision 2"):
        handle.stop()
