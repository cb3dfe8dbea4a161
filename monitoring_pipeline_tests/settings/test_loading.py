"""Settings: precedence of sources, relative paths, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.settings import ScorerSettings, Settings, config_path, load_settings, without_password

SCORER = '[[scorers]]\nname = "a"\nscorer = "json:loads"\n'
KEYS = (
    "mlflow, lake, archive, spark, scorers, scoring, backfill, sensor, reports, datasets, dagster, databricks, "
    "alerts, notifiers, notify, upkeep, automation, python"
)


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("MONITORING_") or name in ("MLFLOW_TRACKING_URI", "SPARK_REMOTE"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def load(tmp_path: Path, toml: str) -> Settings:
    file = tmp_path / "monitoring.toml"
    file.write_text(toml, encoding="utf-8")
    return load_settings(file)


def problems(tmp_path: Path, toml: str) -> list[str]:
    """The lines that loading `toml` fails with, without the name of the file."""
    with pytest.raises(SettingsError) as failure:
        load(tmp_path, toml)
    assert str(failure.value).splitlines() == failure.value.problems  # one line each
    prefix = f"{tmp_path / 'monitoring.toml'}: "
    assert all(problem.startswith(prefix) for problem in failure.value.problems), failure.value.problems
    return [problem.removeprefix(prefix) for problem in failure.value.problems]


def test_without_a_file_defaults_apply(tmp_path: Path) -> None:
    settings = load_settings()

    assert settings.mlflow.tracking_uri == f"sqlite:///{tmp_path}/data/mlflow.db"
    assert settings.lake.location == f"{tmp_path}/data/lake"
    assert settings.archive.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert settings.spark.remote is None
    assert [scorer.name for scorer in settings.scorers] == ["response_quality", "tool_errors", "stage_latency"]


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    without_file = load_settings()

    assert load(tmp_path, "").model_dump() == without_file.model_dump()


class Case(NamedTuple):
    """A setting as written in the file and in the environment."""

    section: str
    key: str
    in_file: str
    variable: str
    in_environment: str
    from_environment: object

    def of(self, settings: Settings) -> object:
        return getattr(getattr(settings, self.section), self.key)


PRECEDENCE = [
    Case("backfill", "max_partitions_per_run", "7", "MONITORING_BACKFILL__MAX_PARTITIONS_PER_RUN", "9", 9),
    Case("mlflow", "experiments", '["file"]', "MONITORING_MLFLOW__EXPERIMENTS", '["set"]', ["set"]),
    Case("dagster", "executor", '"in_process"', "MONITORING_DAGSTER__EXECUTOR", "multiprocess", "multiprocess"),
    Case("spark", "remote", '"sc://file:1"', "MONITORING_SPARK__REMOTE", "sc://set:1", "sc://set:1"),
    Case("spark", "remote", '"sc://file:1"', "SPARK_REMOTE", "sc://set:1", "sc://set:1"),
    Case("mlflow", "tracking_uri", '"http://file"', "MONITORING_MLFLOW__TRACKING_URI", "http://set", "http://set"),
    Case("mlflow", "tracking_uri", '"http://file"', "MLFLOW_TRACKING_URI", "http://set", "http://set"),
]
each_setting = pytest.mark.parametrize("case", PRECEDENCE, ids=lambda case: case.variable)


@each_setting
def test_the_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setenv(case.variable, case.in_environment)

    settings = load(tmp_path, f"[{case.section}]\n{case.key} = {case.in_file}\n")

    assert case.of(settings) == json.loads(case.in_file)


@each_setting
def test_the_environment_wins_over_the_default(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setenv(case.variable, case.in_environment)

    assert case.of(load_settings()) == case.from_environment


@each_setting
def test_an_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    default = case.of(load_settings())
    monkeypatch.setenv(case.variable, "")

    assert case.of(load_settings()) == default


def test_a_key_of_the_file_leaves_its_neighbours_to_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONITORING_MLFLOW__EXPERIMENTS", '["from the environment"]')

    settings = load(tmp_path, '[mlflow]\ntracking_uri = "http://file"\n')

    assert (settings.mlflow.tracking_uri, settings.mlflow.experiments) == ("http://file", ["from the environment"])


def test_the_pipelines_own_variable_wins_over_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://usual")
    monkeypatch.setenv("MONITORING_MLFLOW__TRACKING_URI", "http://own")

    assert load_settings().mlflow.tracking_uri == "http://own"


@pytest.mark.parametrize(
    ("toml", "variable", "is_embedded"),
    [
        ("", None, True),
        ('[mlflow]\nexperiments = ["a"]\n', None, True),
        ('[mlflow]\ntracking_uri = "http://there"\n', None, False),
        ("", "MLFLOW_TRACKING_URI", False),
        ("", "MONITORING_MLFLOW__TRACKING_URI", False),
    ],
)
def test_the_embedded_store_is_used_if_none_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, variable: str | None, is_embedded: bool
) -> None:
    if variable:
        monkeypatch.setenv(variable, "http://there")

    assert load(tmp_path, toml).uses_embedded_store is is_embedded


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    settings = load(
        tmp_path,
        '[mlflow]\ntracking_uri = "sqlite:///store.db"\n[lake]\nlocation = "lake"\n[reports]\nlocation = "../out"\n',
    )

    assert settings.mlflow.tracking_uri == f"sqlite:///{tmp_path}/store.db"
    assert settings.lake.location == f"{tmp_path}/lake"
    assert settings.reports.location == f"{tmp_path}/../out"


def test_absolute_paths_and_addresses_are_unchanged(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        '[mlflow]\ntracking_uri = "sqlite:////a/b.db"\n[lake]\nlocation = "s3://b/c"\n[reports]\nlocation="/r"\n',
    )

    assert (settings.mlflow.tracking_uri, settings.lake.location, settings.reports.location) == (
        "sqlite:////a/b.db",
        "s3://b/c",
        "/r",
    )


@pytest.mark.parametrize("location", ["main.monitoring", "spark_catalog.default"])
def test_a_schema_of_a_catalog_is_not_a_folder(tmp_path: Path, location: str) -> None:
    assert load(tmp_path, f'[lake]\nlocation = "{location}"\n').lake.location == location


@pytest.mark.parametrize("location", ["./main.monitoring", "main.monitoring/", "a b.c", "lake", "1.x", "a.b.c.d"])
def test_a_location_that_is_not_a_schema_is_a_folder(tmp_path: Path, location: str) -> None:
    assert load(tmp_path, f'[lake]\nlocation = "{location}"\n').lake.location == str(tmp_path / location)


@pytest.mark.parametrize(
    ("source", "location", "absolute"),
    [
        ("mlflow-sql", "sqlite:///store.db", "sqlite:///{base}/store.db"),
        ("mlflow-sql", "postgresql://host/mlflow", "postgresql://host/mlflow"),
        ("delta", "main.prod.archived_traces", "main.prod.archived_traces"),
        ("delta", "archived", "{base}/archived"),
        ("otel", "s3://bucket/agent", "s3://bucket/agent"),
    ],
)
def test_the_location_of_a_source_starts_from_the_folder_of_the_file(
    tmp_path: Path, source: str, location: str, absolute: str
) -> None:
    archive = load(tmp_path, f'[archive]\nsource = "{source}"\nlocation = "{location}"\n').archive

    assert archive.location == absolute.format(base=tmp_path)


def test_a_path_may_start_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")

    assert load(tmp_path, '[lake]\nlocation = "~/lake"\n').lake.location == "/home/ada/lake"


def test_the_start_of_the_archive_is_a_whole_utc_hour(tmp_path: Path) -> None:
    settings = load(tmp_path, "[archive]\nstart = 2026-02-03T01:45:00+02:00\n")

    assert settings.archive.start == datetime(2026, 2, 2, 23, tzinfo=UTC)


def test_monitoring_config_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text('[mlflow]\ntracking_uri = "http://other"\n', encoding="utf-8")
    monkeypatch.setenv("MONITORING_CONFIG", str(tmp_path / "other.toml"))

    assert load_settings().mlflow.tracking_uri == "http://other"


def test_the_file_given_wins_over_monitoring_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONITORING_CONFIG", str(tmp_path / "missing.toml"))

    assert load(tmp_path, "[backfill]\nmax_partitions_per_run = 3\n").backfill.max_partitions_per_run == 3


def test_the_file_in_the_working_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "monitoring.toml").touch()

    assert config_path() == tmp_path / "monitoring.toml"


@pytest.mark.parametrize("by", ["argument", "MONITORING_CONFIG"])
def test_a_missing_named_file_is_reported(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing.toml"
    monkeypatch.setenv("MONITORING_CONFIG", str(missing) if by == "MONITORING_CONFIG" else "")

    with pytest.raises(SettingsError) as failure:
        load_settings(missing if by == "argument" else None)

    assert failure.value.problems == [
        f"{missing}: no such file; name an existing one with --config or MONITORING_CONFIG"
    ]


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        colour = "blue"
        [mlflow]
        tracking = "http://there"
        [archive]
        start = 2026-01-01T00:00:00
        [nonsense]
        x = 1
        [[scorers]]
        name = "twice"
        scorer = "json:loads"
        sample_rate = 1.5
        [[scorers]]
        name = "twice"
        scorer = "no_such_module.inner:thing"
        [[scorers]]
        name = "third"
        scorer = "json.decoder:no_such_scorer"
        """,
    )

    assert sorted(found) == [
        "archive.start: '2026-01-01 00:00:00' has no time zone: add an offset, such as 2026-01-01T00:00:00Z",
        f"colour: unknown key; known here: {KEYS}",
        "mlflow.tracking: unknown key; known here: tracking_uri, experiments",
        f"nonsense: unknown key; known here: {KEYS}",
        "scorers: name 'twice' is used 2 times; give each scorer its own name",
        "scorers[0].sample_rate = 1.5: must be at most 1.0",
        "scorers[1].scorer = 'no_such_module.inner:thing' (scorer 'twice'): no module named 'no_such_module.inner'; "
        "put it into the folder of monitoring.toml, name its folder in [python] path, or install it",
        "scorers[2].scorer = 'json.decoder:no_such_scorer' (scorer 'third'): module 'json.decoder' has no "
        "'no_such_scorer'",
    ]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ('scorers = "x"', "scorers = 'x': must be a list"),
        ("scorers = 1", "scorers = 1: must be a list"),
        ('scorers = ["x"]', "scorers[0] = 'x': must be a table"),
        ('[scorers]\nname = "a"', "scorers = {'name': 'a'}: must be a list"),
        ('[[scorers]]\nname = "a"', "scorers[0]: neither of scorer and builtin given"),
        (SCORER + 'builtin = "Safety"', "scorers[0]: both of scorer and builtin given"),
        (SCORER + 'model = "openai:/x"', "scorers[0]: model = 'openai:/x' is for a builtin"),
        ('[[scorers]]\nname = "a"\nbuiltin = "no-name"', "scorers[0].builtin = 'no-name': must look like Safety"),
        ('[[scorers]]\nname = "a"\nbuiltin = "Safety"\nmodel = "gpt"', "scorers[0].model = 'gpt': must look like"),
        (SCORER + 'pass_if = "high"', "scorers[0].pass_if = 'high': must look like >= 0.5"),
        (SCORER + 'compare_with = "x"', "scorers[0].compare_with = 'x': must be a list, such as"),
        (SCORER + "concurrency = 0", "scorers[0].concurrency = 0: must be at least 1"),
        (SCORER + "max_usd_per_day = 0", "scorers[0].max_usd_per_day = 0: must be more than 0"),
        (SCORER + 'state = "on"', "scorers[0].state = 'on': "),
        ('[[scorers]]\nscorer = "json:loads"', "scorers[0].name: missing"),
        ('[[scorers]]\nname = 1\nscorer = "json:loads"', "scorers[0].name = 1: "),
        ('[[scorers]]\nname = ["a"]\nscorer = "json:loads"', "scorers[0].name = ['a']: "),
        ('[[scorers]]\nname = "a b"\nscorer = "json:loads"', "scorers[0].name = 'a b': must look like my_scorer"),
        ('[[scorers]]\nname = "a"\nscorer = "json"', "scorers[0].scorer = 'json': must look like package.module:"),
        ('[[scorers]]\nname = "a"\nscorer = "..:x"', "scorers[0].scorer = '..:x': must look like package.module:"),
        ('[[scorers]]\nname = "a"\nscorer = "a..b:x"', "scorers[0].scorer = 'a..b:x' (scorer 'a'): no module named"),
        ('[[scorers]]\nname = "a"\nscorer = 1', "scorers[0].scorer = 1: "),
        (SCORER + 'sample_rate = "high"', "scorers[0].sample_rate = 'high': "),
        (SCORER + "sample_rate = nan", "scorers[0].sample_rate = nan: must be at most 1"),
        (SCORER + "sample_rate = inf", "scorers[0].sample_rate = inf: must be at most 1"),
        (SCORER + "sample_rate = -inf", "scorers[0].sample_rate = -inf: must be at least 0"),
        (SCORER + "sample_rate = -0.1", "scorers[0].sample_rate = -0.1: must be at least 0"),
        (
            SCORER + "rate = 1",
            "scorers[0].rate: unknown key; known here: name, scorer, builtin, model, params, state, ",
        ),
        (SCORER + "filter = 1", "scorers[0].filter = 1: "),
        (SCORER + "params = 1", "scorers[0].params = 1: "),
        ("colour = 1", f"colour: unknown key; known here: {KEYS}"),
        ("mlflow = 1", "mlflow = 1: must be a table"),
        ("[[mlflow]]\nexperiments = []", "mlflow = [{'experiments': []}]: must be a table"),
        ("[mlflow.deep]\nx = 1", "mlflow.deep: unknown key; known here: tracking_uri, experiments"),
        ('[mlflow]\nTRACKING_URI = "x"', "mlflow.TRACKING_URI: unknown key"),
        ('[MLFLOW]\ntracking_uri = ["x"]', "mlflow.tracking_uri = ['x']: "),
        ('[mlflow]\nexperiments = "one"', "mlflow.experiments = 'one': must be a list"),
        ("[mlflow]\nexperiments = [1]", "mlflow.experiments[0] = 1: "),
        ('[mlflow]\ntracking_uri = ""', "mlflow.tracking_uri = '': "),
        ("[backfill]\nmax_partitions_per_run = 0", "backfill.max_partitions_per_run = 0: must be at least 1"),
        ("[backfill]\nmax_partitions_per_run = 1.5", "backfill.max_partitions_per_run = 1.5: "),
        ("[archive]\nstart = 2026-01-01", "archive.start: '2026-01-01' has no time zone"),
        ("[archive]\nstart = 2026", "archive.start: '2026' is not a time"),
        ("[archive]\nstart = 07:32:00", "archive.start: '07:32:00' is not a time"),
        ('[archive]\nstart = "soon"', "archive.start: 'soon' is not a time"),
        ('[archive]\nsource = "files"', "archive.source = 'files': "),
        ('[archive]\nsource = "delta"', "archive: source = 'delta' needs location: the catalog.schema.name, or folder"),
        ('[archive]\nsource = "otel"\nlocation = ""', "archive.location = '': "),
        (
            '[archive]\nlocation = "postgresql://ada:secret@db/mlflow"',
            "archive: location = 'postgresql://***@db/mlflow' is for other sources; set [mlflow] tracking_uri",
        ),
        ('[spark]\nremote = "http://h"', "spark.remote = 'http://h': must look like sc://host:15002"),
        ("[spark]\nremote = 15002", "spark.remote = 15002: "),
        ('[dagster]\nexecutor = "threads"', "dagster.executor = 'threads': "),
        ("[lake]\nlocation = 3", "lake.location = 3: "),
        ('[lake]\nlocation = ""', "lake.location = '': "),
        (
            '[reports]\nlocation = "~nobody_here/x"',
            "reports.location: '~nobody_here/x' starts from an unknown home folder",
        ),
        ("[lake\nlocation = 1", "not valid TOML: "),
        ("[archive]\nstart = 2026-01-01T00:00", "not valid TOML: "),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(tmp_path: Path, toml: str, line: str) -> None:
    (found,) = problems(tmp_path, toml)

    assert found.startswith(line)


def test_a_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.toml"
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(SettingsError, match=r"monitoring\.toml: cannot be read as UTF-8 text"):
        load_settings(file)


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("MONITORING_MLFLOW__EXPERIMENTS", "one", "environment: mlflow.experiments = 'one': must be a list"),
        ("MONITORING_MLFLOW__NOPE", "1", "environment: mlflow.nope: unknown key"),
        ("MONITORING_MLFLOW", "x", "environment: mlflow = 'x': must be a table"),
        ("MONITORING_SCORERS", "x", "environment: scorers = 'x': must be a list"),
        ("MONITORING_BACKFILL__MAX_PARTITIONS_PER_RUN", "0", "environment: backfill.max_partitions_per_run = '0': "),
        ("MONITORING_ARCHIVE__START", "2026-01-01", "environment: archive.start: '2026-01-01' has no time zone"),
        ("SPARK_REMOTE", "http://x", "environment: spark.remote = 'http://x': must look like sc://host:15002"),
    ],
)
def test_a_wrong_variable_is_reported_as_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, line: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as failure:
        load(tmp_path, '[lake]\nlocation = "lake"\n')

    (found,) = failure.value.problems
    assert found.startswith(line)


def test_a_scorer_whose_package_fails_to_import_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "failing_package"
    package.mkdir()
    (package / "__init__.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    (found,) = problems(tmp_path, '[[scorers]]\nname = "a"\nscorer = "failing_package.scorers:mine"\n')

    assert "'failing_package.scorers:mine'" in found
    assert "ZeroDivisionError" in found


def test_a_scorers_module_is_found_without_being_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "costly_scorers.py").write_text("def mine(): ...\nraise RuntimeError\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    settings = load(tmp_path, '[[scorers]]\nname = "a"\nscorer = "costly_scorers:mine"\n')

    assert settings.scorers == [ScorerSettings(name="a", scorer="costly_scorers:mine")]


@pytest.mark.parametrize("password", ["hunter2", "hun@ter2", "hun/ter2", "hun:ter2", "h?unter2#x"])
@pytest.mark.parametrize(
    "toml",
    ['[spark]\nremote = "{}"', '[mlflow]\ntracking_uri = ["{}"]', '[mlflow]\nexperiments = "{}"', "[mlflow]\nx = {}"],
)
def test_a_password_never_appears_in_an_error(tmp_path: Path, toml: str, password: str) -> None:
    lines = problems(tmp_path, toml.format(f"postgresql://ada:{password}@db/mlflow"))

    assert lines
    assert not [part for part in ("ada", "hun", "ter2") for line in lines if part in line]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://ada:secret@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("http://ada@host", "http://***@host"),
        ("postgresql://db/mlflow?user=ada&password=secret", "postgresql://db/mlflow?user=ada&password=***"),
        ("sc://host:443/;token=secret;user_id=ada", "sc://host:443/;token=***;user_id=ada"),
        ("s3://bucket/path?x-api-key=secret", "s3://bucket/path?x-api-key=***"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://host:5000/path", "http://host:5000/path"),
    ],
)
def test_secrets_of_an_address_are_masked(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


def test_loading_settings_imports_no_heavy_library() -> None:
    code = (
        "import sys; from monitoring_pipeline.settings import load_settings; load_settings(); "
        "print(sorted({'mlflow', 'pyspark', 'pysail', 'dagster', 'pandas', 'deltalake'} & set(sys.modules)))"
    )

    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert loaded.stdout.strip() == "[]"
