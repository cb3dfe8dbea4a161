"""The command line as a user calls it: output, exit codes, and one clear line for each mistake."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, QUARANTINED_TRACES, TABLES
from monitoring_pipeline.windows import floor_hour
from monitoring_pipeline_tests.cli.calling import Called, calling, run_command
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.sources.stores import Store

COMMAND = str(Path(sys.executable).parent / "monitoring-pipeline")
RANGE = ("--from", "2026-01-01T00:00Z", "--to", "2026-01-01T03:00Z")


class Shell:
    """A folder with a configuration, in which the command is called, in this process or in a new one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.calling = calling(monkeypatch, capsys)
        others = {name: value for name, value in os.environ.items() if not name.startswith(("MONITORING_", "DAGSTER_"))}
        self.environment = {**others, "COLUMNS": "200"}

    def configure(self, text: str) -> None:
        (self.folder / "monitoring.toml").write_text(text, encoding="utf-8")

    def call(self, *arguments: str) -> Called:
        self.monkeypatch.chdir(self.folder)
        # A run sets it; monkeypatch restores it, and each folder has its own instance.
        self.monkeypatch.setenv("DAGSTER_HOME", "")
        self.monkeypatch.delenv("DAGSTER_HOME")
        return self.calling(*arguments)

    def call_process(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,  # takes seconds on an idle machine, minutes on a busy one
        )

    def start_process(self, *arguments: str) -> Fork:
        output = self.folder / "output"
        return Fork(run_command, arguments, self.folder, self.environment, output, output)

    def lake(self, spark: SparkResource) -> LakeResource:
        return LakeResource(location=str(self.folder / "data" / "lake"), spark=spark)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.fixture
def airline(shell: Shell, recorded_store: str) -> Shell:
    """A shell configured for the recorded conversations."""
    shell.configure(f'[mlflow]\ntracking_uri = "{recorded_store}"\nexperiments = ["airline"]\n')
    return shell


@pytest.mark.parametrize("arguments", [["--help"], ["assess", "--help"], ["backfill", "--help"]])
def test_help_is_quick_to_load(arguments: list[str]) -> None:
    code = (
        "import sys; from monitoring_pipeline.cli.app import app; app(sys.argv[1:], standalone_mode=False); "
        "print([m for m in ('mlflow', 'pyspark', 'dagster', 'pandas') if m in sys.modules])"
    )
    output = subprocess.check_output([sys.executable, "-c", code, *arguments], text=True)
    assert "Usage: " in output
    assert output.splitlines()[-1] == "[]"


def test_run_prints_a_summary_and_running_again_changes_no_row(airline: Shell, spark: SparkResource) -> None:
    first = airline.call("run", *RANGE)
    assert first.code == 0, first.err
    assert "response_quality" in first.out
    assert "report.html" in first.out
    lake = airline.lake(spark)
    rows = {table.name: sorted(map(str, lake.read(table).collect())) for table in TABLES}
    assert rows["agent_traces"]

    assert airline.call("run", *RANGE).code == 0
    assert {table.name: sorted(map(str, lake.read(table).collect())) for table in TABLES} == rows


def test_run_of_one_scorer_leaves_the_others_out(airline: Shell, spark: SparkResource) -> None:
    assert airline.call("run", *RANGE, "--scorer", "tool_errors").code == 0
    scorers = airline.lake(spark).read(ASSESSMENTS).select("scorer").distinct().toPandas()["scorer"].tolist()
    assert scorers == ["tool_errors"]


def test_a_range_without_traces_says_so(airline: Shell) -> None:
    done = airline.call("run", "--from", "2026-05-01T00:00Z", "--to", "2026-05-01T02:00Z")
    assert done.code == 0
    assert "No traces in this range" in done.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--from", "2026-01-02T00:00Z", "--to", "2026-01-01T00:00Z"), "is not before"),
        (("--from", "2026-01-01T00:00"), "has no time zone"),
        (("--from", "yesterday"), "'yesterday' is not a time"),
        (("--from", "2020-01-01T00:00Z", "--to", "2026-01-01T00:00Z"), "before the archive's start"),
        (("--scorer", "nope"), "--scorer nope"),
    ],
)
def test_wrong_usage_is_exit_code_2(airline: Shell, arguments: tuple[str, ...], named: str) -> None:
    done = airline.call("run", *arguments)
    assert done.code == 2
    assert named in done.error
    assert not (airline.folder / "data").exists()


@pytest.mark.parametrize(
    ("configuration", "named"),
    [
        ('[mlflow]\ntracking_uri = "http://127.0.0.1:9"\n', "no MLflow server answers at http://127.0.0.1:9"),
        ('[mlflow]\ntracking_uri = "sqlite:///gone.db"\n', "no such file"),
        ('[lake]\nlocation = "x"\n[lake', "not valid TOML"),
        ('[lake]\nlocatoin = "x"\n', "lake.locatoin: unknown key"),
    ],
)
def test_errors_are_one_line_with_exit_code_1(shell: Shell, configuration: str, named: str) -> None:
    shell.configure(configuration)
    done = shell.call("run", *RANGE)
    assert done.code == 1
    assert named in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (shell.folder / "data" / "lake").exists()


def test_the_console_script_ends_with_the_exit_code(shell: Shell) -> None:
    shell.configure('[lake]\nlocatoin = "x"\n')
    failed, misused = shell.call_process("run", *RANGE), shell.call_process("run", "--form", "yesterday")
    assert (failed.returncode, misused.returncode) == (1, 2)
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1
    assert "No such option: --form" in misused.stderr


def test_a_missing_experiment_is_named_with_the_existing_ones(shell: Shell, recorded_store: str) -> None:
    shell.configure(f'[mlflow]\ntracking_uri = "{recorded_store}"\nexperiments = ["airlin"]\n')
    done = shell.call("run", *RANGE)
    assert done.code == 1
    assert "'airlin'" in done.err
    assert "'airline'" in done.err


def test_a_lake_that_cannot_be_written_is_named(shell: Shell, recorded_store: str) -> None:
    (shell.folder / "file").touch()
    shell.configure(f'[mlflow]\ntracking_uri = "{recorded_store}"\n[lake]\nlocation = "file/lake"\n')
    done = shell.call("run", *RANGE)
    assert done.code == 1
    assert str(shell.folder / "file" / "lake") in done.err


def test_a_scorer_that_always_raises_fails_the_run_but_no_other_asset(
    shell: Shell, recorded_store: str, spark: SparkResource
) -> None:
    (shell.folder / "broken.py").write_text(
        "from mlflow.genai.scorers import scorer\n\n"
        "@scorer\ndef broken(outputs):\n    raise ValueError('no such luck \\x1b[2J [red]')\n"
    )
    shell.configure(
        f'[mlflow]\ntracking_uri = "{recorded_store}"\n'
        '[[scorers]]\nname = "broken"\nscorer = "broken:broken"\n'
        '[[scorers]]\nname = "tool_errors"\nscorer = "monitoring_pipeline.scoring.scorers:tool_errors"\n'
    )
    shell.monkeypatch.syspath_prepend(shell.folder)
    done = shell.call("run", *RANGE)
    del sys.modules["broken"]
    assert done.code == 1
    assert "no such luck \N{REPLACEMENT CHARACTER}[2J [red]" in done.out
    assert "\x1b" not in done.out + done.err
    rows = shell.lake(spark).read(ASSESSMENTS).toPandas()
    traces = shell.lake(spark).read(AGENT_TRACES).count()
    assert (rows[rows["scorer"] == "broken"]["error_code"] == "SCORER_ERROR").sum() == traces
    assert rows[rows["scorer"] == "tool_errors"]["error_code"].isna().all()


def test_doctor_prints_passed_and_failed_checks(airline: Shell) -> None:
    well = airline.call("doctor")
    assert well.code == 0
    assert well.out.count("ok") >= 5
    airline.configure('[mlflow]\ntracking_uri = "http://127.0.0.1:9"\n')
    ill = airline.call("doctor")
    assert ill.code == 1
    assert "FAIL" in ill.out
    assert "http://127.0.0.1:9" in ill.out


def test_doctor_names_traces_that_no_hour_of_the_archive_holds(shell: Shell) -> None:
    store = Store.create(shell.folder)
    shell.configure(f'[mlflow]\ntracking_uri = "{store.uri}"\nexperiments = ["made"]\n')
    assert "not archived" not in shell.call("doctor").out
    store.log(1, started=datetime(1970, 1, 2, tzinfo=UTC))
    store.log(2, started=datetime(2200, 1, 1, tzinfo=UTC))
    out = shell.call("doctor").out
    assert "traces dated before 2026-01-01 00:00 ([archive] start) are not archived" in out
    assert "traces dated in the future are not archived" in out


def test_doctor_names_traces_that_could_not_be_read(shell: Shell, spark: SparkResource) -> None:
    store = Store.create(shell.folder)
    shell.configure(f'[mlflow]\ntracking_uri = "{store.uri}"\nexperiments = ["made"]\n[lake]\nlocation = "lake"\n')
    lake = LakeResource(location=str(shell.folder / "lake"), spark=spark)
    hour = floor_hour(datetime.now(UTC))
    old = {"trace_id": "tr-0", "trace_hour": hour - timedelta(days=30), "reason": "long ago", "raw": "{}"}
    for row in (old, {"trace_id": "tr-1", "trace_hour": hour, "reason": "its spans\nare \x1b[31mcorrupt", "raw": "{}"}):
        lake.upsert(QUARANTINED_TRACES, from_dicts(QUARANTINED_TRACES, [row]))
    out = shell.call("doctor").out
    assert (
        "; 1 traces of the last 14 days could not be read, such as tr-1 (its spans are �[31mcorrupt); they are" in out
    )
    assert "\x1b[31m" not in out


def test_demo_refuses_a_configured_store(airline: Shell) -> None:
    done = airline.call("demo")
    assert done.code == 1
    assert "use `run`" in done.err


def test_a_killed_run_is_completed_by_the_next(
    airline: Shell,
    spark: SparkResource,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    half_a_day = ("--from", "2026-01-01T00:00Z", "--to", "2026-01-01T12:00Z")
    for _ in range(2):
        process = airline.start_process("run", *half_a_day)
        log = airline.folder / "data" / "lake" / "assessments" / "_delta_log"
        deadline = time.monotonic() + 60
        seen = len(list(log.glob("*.json"))) if log.exists() else 0
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and len(list(log.glob("*.json"))) > max(seen, 1):
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = airline.call("run", *half_a_day)
    assert done.code == 0, done.out

    undisturbed = Shell(tmp_path_factory.mktemp("undisturbed"), airline.monkeypatch, capsys)
    undisturbed.configure((airline.folder / "monitoring.toml").read_text())
    assert undisturbed.call("run", *half_a_day).code == 0
    for table in TABLES:
        timeless = [name for name in table.schema.names if name not in TIMES]
        one, other = (
            sorted(map(str, place.lake(spark).read(table).select(*timeless).collect()))
            for place in (airline, undisturbed)
        )
        assert one == other, table.name


TIMES = {"created_at", "archived_at", "assessed_at", "dagster_run_id", "duration_ms"}


def test_traces_deleted_from_mlflow_stay_archived(shell: Shell, recorded_store: str, spark: SparkResource) -> None:
    from mlflow import MlflowClient

    copy = shell.folder / "copy.db"
    with sqlite3.connect(recorded_store.removeprefix("sqlite:///")) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    shell.configure(f'[mlflow]\ntracking_uri = "sqlite:///{copy}"\nexperiments = ["airline"]\n')
    assert shell.call("run", *RANGE).code == 0
    archived = shell.lake(spark).read(AGENT_TRACES).count()

    client = MlflowClient(f"sqlite:///{copy}")
    experiment = client.get_experiment_by_name("airline")
    assert experiment is not None
    deleted = client.delete_traces(
        experiment.experiment_id, max_timestamp_millis=1767225600000 + 3_600_000, max_traces=100
    )
    assert deleted > 0
    assert shell.call("run", *RANGE).code == 0
    assert shell.lake(spark).read(AGENT_TRACES).count() == archived
