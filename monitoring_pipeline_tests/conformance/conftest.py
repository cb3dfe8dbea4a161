"""One cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitoring_pipeline_tests.cluster import SparkCluster, running


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """A Spark cluster with two workers."""
    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
