"""[databricks]: complete settings, and one clear line for incomplete ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.settings import load_settings

VOLUME = 'volume = "/Volumes/main/monitoring/pipeline"\n'
PACKAGES = 'packages = ["/Volumes/main/monitoring/pipeline/it.whl"]\n'


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ('jobs = "spark"', "databricks.jobs = 'spark': "),
        ('jobs = "serverless"', "databricks: jobs = 'serverless' needs volume, such as /Volumes/main/monitoring/"),
        ('jobs = "serverless"\n' + VOLUME, "databricks: jobs = 'serverless' needs packages: this package's wheel"),
        (
            'jobs = "serverless"\ncluster_id = "1"\n' + VOLUME + PACKAGES,
            "databricks: cluster_id is for jobs = 'cluster'; jobs is 'serverless'",
        ),
        (
            'jobs = "cluster"\n' + VOLUME,
            "databricks: jobs = 'cluster' needs one of cluster_id and new_cluster; neither",
        ),
        (
            'jobs = "cluster"\ncluster_id = "1"\nnew_cluster = { num_workers = 1 }\n' + VOLUME,
            "databricks: jobs = 'cluster' needs one of cluster_id and new_cluster; both given",
        ),
        ('volume = "dbfs:/tmp"', "databricks.volume: volume = 'dbfs:/tmp' must look like /Volumes/main/monitoring/"),
        (
            'volume = "/Volumes/main/monitoring"',
            "databricks.volume: volume = '/Volumes/main/monitoring' must look like",
        ),
        ("cluster_id = 1", "databricks.cluster_id = 1: "),
        ("new_cluster = 1", "databricks.new_cluster = 1: "),
        ("token = 1", "databricks.token: unknown key; known here: jobs, cluster_id, new_cluster, volume, packages, "),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(tmp_path: Path, toml: str, line: str) -> None:
    file = tmp_path / "monitoring.toml"
    file.write_text(f"[databricks]\n{toml}\n", encoding="utf-8")

    with pytest.raises(SettingsError) as failure:
        load_settings(file)

    (found,) = failure.value.problems
    assert found.startswith(f"{file}: {line}")


def test_a_volume_may_end_in_a_slash(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.toml"
    file.write_text('[databricks]\nvolume = "/Volumes/main/monitoring/pipeline/"\n', encoding="utf-8")

    assert load_settings(file).databricks.volume == "/Volumes/main/monitoring/pipeline"
