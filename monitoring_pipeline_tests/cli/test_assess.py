"""`monitoring-pipeline assess` as a user calls it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.made_project import FROM, IDS, LATENCY, TO, MadeProject, scorer

ODD = "monitoring_pipeline_tests.odd_scorers"
EVEN, NOTHING = scorer("even", f"{ODD}:even"), scorer("nothing", f"{ODD}:nothing")
RANGE = ("--from", FROM, "--to", TO)


@pytest.fixture
def project(made: MadeProject, monkeypatch: pytest.MonkeyPatch) -> MadeProject:
    """A configured project with the working folder in it."""
    found = made.having(LATENCY, EVEN, NOTHING)
    found.configure()
    monkeypatch.chdir(found.folder)
    return found


@pytest.fixture
def call(project: MadeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling(monkeypatch, capsys, "assess")


def test_figures_are_printed_and_the_archive_does_not_change(call: Call, project: MadeProject) -> None:
    before = project.versions()
    done = call(*RANGE)
    assert done.code == 0
    assert done.out.startswith("40 traces\n")
    assert done.table() == [
        ["scorer", "n", "mean", "pass rate", "errors", "$"],
        ["stage_latency", "40", "1.0000", "100.0%", "0", ""],
        ["even", "32", "0.5000", "50.0%", "8", ""],
        ["nothing", "0", "", "", "0", ""],
    ]
    assert project.versions() == before


def test_scorers_and_traces_may_be_named(call: Call) -> None:
    done = call("--trace-id", IDS[1], "--trace-id", IDS[2], "--scorer", "even")
    assert done.table()[1:] == [["even", "2", "0.5000", "50.0%", "0", ""]]
    done = call(*RANGE, "--filter", "tags.env = 'prod'", "--scorer", "even")
    assert done.table()[1:] == [["even", "16", "1.0000", "100.0%", "4", ""]]
    assert call("--scorer", "even").out.startswith("0 traces\n")


@pytest.mark.parametrize(
    ("thresholds", "code", "lines"),
    [
        (["even=0.5"], 0, []),
        (["even=0.5", "stage_latency=1"], 0, []),
        (["even=0.51"], 1, ["too low even: mean score 0.5000 is under 0.51"]),
        (["nothing=0"], 1, ["too low nothing: no score to compare with 0"]),
        (
            ["nothing=0", "even=2", "stage_latency=1"],
            1,
            ["too low nothing: no score to compare with 0", "too low even: mean score 0.5000 is under 2"],
        ),
    ],
)
def test_the_gate_decides_the_exit_code(call: Call, thresholds: list[str], code: int, lines: list[str]) -> None:
    done = call(*RANGE, *(argument for each in thresholds for argument in ("--fail-under", each)))
    assert done.code == code
    assert [line for line in done.out.splitlines() if "too low" in line] == lines
    assert len(done.table()) == 4


def test_results_are_written_even_if_the_gate_fails(call: Call, project: MadeProject) -> None:
    done = call(*RANGE, "--output", "results.csv", "--scorer", "even", "--fail-under", "even=1")
    assert done.code == 1
    with (project.folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trace_id"] for row in rows] == IDS
    scores = [float(row["score"]) for row in rows if row["score"]]
    assert (len(scores), sum(scores)) == (32, 16)
    assert sum(row["error_message"] == "ValueError: five divides it" for row in rows) == 8


def test_the_run_in_mlflow_is_printed(call: Call) -> None:
    from mlflow import MlflowClient

    from monitoring_pipeline.settings import load_settings

    done = call(*RANGE, "--scorer", "even", "--experiment", "gate")
    run_id = next(line for line in done.out.splitlines() if line.startswith("MLflow run: ")).split()[-1]
    metrics = MlflowClient(load_settings().mlflow.tracking_uri).get_run(run_id).data.metrics
    assert metrics == {"even/n": 32, "even/mean": 0.5, "even/pass_rate": 0.5, "even/errors": 8}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--from", "yesterday"), 2, "'yesterday' is not a time"),
        (("--from", TO, "--to", FROM), 2, "is not before"),
        (("--scorer", "evn"), 2, "--scorer evn: no such scorer; configured are stage_latency, even, nothing"),
        (("--fail-under", "even"), 2, "--fail-under even: write it as response_quality=0.8"),
        (("--fail-under", "even=much"), 2, "--fail-under even=much: write it as response_quality=0.8"),
        (("--output", "no/such/folder.csv"), 2, "--output no/such/folder.csv: folder no/such does not exist"),
        (("--scores", "even"), 2, "No such option"),
        (("--fail-under", "evn=1"), 1, "error: fail-under names evn, but only stage_latency, even, nothing runs"),
        (("--fail-under", "even=nan"), 1, "error: fail-under of even must be a finite number"),
        (("--filter", "nonsense"), 1, "error: trace filter 'nonsense': "),
        (("--trace-id", "tr-0"), 1, "error: no trace tr-0 in the archive; archive its hour first"),
    ],
)
def test_errors_are_reported_in_one_line(call: Call, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = call(*arguments)
    assert done.code == code
    assert message in done.error
    assert done.out == ""


def test_results_are_not_markup(call: Call, project: MadeProject, tmp_path: Path) -> None:
    done = call(*RANGE, "--filter", "tags.env = '[red]prod[/]'")
    assert done.code == 0
    assert done.out.startswith("0 traces\n")
