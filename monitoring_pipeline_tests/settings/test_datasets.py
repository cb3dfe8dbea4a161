"""`[[datasets]]`: defaults, and a line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.settings import DatasetSettings, Settings, load_settings


def load(tmp_path: Path, *entries: str) -> Settings:
    file = tmp_path / "monitoring.toml"
    file.write_text("".join(f"[[datasets]]\n{entry}\n" for entry in entries), encoding="utf-8")
    return load_settings(file)


def problems(tmp_path: Path, *entries: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(tmp_path, *entries)
    return [problem.removeprefix(f"{tmp_path / 'monitoring.toml'}: ") for problem in raised.value.problems]


def test_missing_keys_have_defaults(tmp_path: Path) -> None:
    first, second = load(
        tmp_path,
        'name = "all"\nkind = "traces"',
        'name = "low"\nkind = "regression"\nscorer = "quality"\nthreshold = 0.7\nlocation = "/else"\nmlflow = true\n'
        'mlflow_name = "catalog.schema.low"\nformats = ["parquet", "jsonl"]\ndays = 30',
    ).datasets
    assert first == DatasetSettings(name="all", kind="traces", location=str(tmp_path / "data" / "datasets"))
    assert (first.days, first.formats, first.mlflow, first.with_outputs) == (1, ["jsonl"], False, True)
    assert (second.location, second.mlflow_name, second.days) == ("/else", "catalog.schema.low", 30)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ('name = "a"', "datasets[0].kind: missing; add it"),
        (
            'name = "a"\nkind = "failed"',
            "datasets[0].kind = 'failed': input should be 'traces', 'expectations', 'tagged', 'failures', 'regression' "
            "or 'diverse'",
        ),
        ('name = "a b"\nkind = "traces"', "datasets[0].name = 'a b': must look like my_scorer (letters, digits and _)"),
        ('name = "a"\nkind = "tagged"', "datasets[0]: kind = 'tagged' needs tag; add it"),
        ('name = "a"\nkind = "failures"', "datasets[0]: kind = 'failures' needs scorer; add it"),
        (
            'name = "a"\nkind = "traces"\nthreshold = 0.5',
            "datasets[0]: threshold does not apply to kind = 'traces', only to regression; remove it",
        ),
        (
            'name = "a"\nkind = "diverse"\nmax_records = 5',
            "datasets[0]: max_records does not apply to kind = 'diverse', only to traces, expectations, tagged, "
            "failures, regression; remove it",
        ),
        ('name = "a"\nkind = "diverse"\nsample_size = 0', "datasets[0].sample_size = 0: must be at least 1"),
        (
            'name = "a"\nkind = "regression"\nscorer = "q"\nthreshold = nan',
            "datasets[0].threshold = nan: input should be a finite number",
        ),
        (
            'name = "a"\nkind = "traces"\nformats = "csv"',
            "datasets[0].formats = 'csv': must be a list, such as [\"jsonl\"]",
        ),
        (
            'name = "a"\nkind = "traces"\nformats = ["csv"]',
            "datasets[0].formats[0] = 'csv': input should be 'jsonl' or 'parquet'",
        ),
        (
            'name = "a"\nkind = "traces"\nformats = []',
            "datasets[0].formats = []: list should have at least 1 item after validation, not 0",
        ),
        (
            'name = "a"\nkind = "traces"\nlocation = "s3://b/c"',
            "datasets[0].location: location = 's3://b/c' must be a folder on this machine",
        ),
        (
            'name = "a"\nkind = "traces"\nmlflow_name = "b"',
            "datasets[0]: mlflow_name = 'b' needs mlflow = true; add it",
        ),
    ],
)
def test_a_mistake_is_a_line_that_names_key_and_fix(tmp_path: Path, entry: str, line: str) -> None:
    assert problems(tmp_path, entry) == [line]


def test_an_unknown_key_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, 'name = "a"\nkind = "traces"\nformat = "jsonl"')
    assert line.startswith("datasets[0].format: unknown key; known here: kind, filter, with_outputs, max_records")


def test_each_dataset_has_its_own_name(tmp_path: Path) -> None:
    entry = 'name = "a"\nkind = "traces"'
    assert problems(tmp_path, entry, entry) == ["datasets: name 'a' is used 2 times; give each dataset its own name"]
