"""The published package: the source distribution, and the wheel built from it, installed and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import monitoring_pipeline

PROJECT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "monitoring_pipeline", "monitoring_pipeline_tests")
STEM = f"monitoring_pipeline-{monitoring_pipeline.__version__}"


def build(kind: str, tree: Path, into: Path) -> None:
    """Build as pip does, but without build isolation, which would need a network."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(into)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree / name)
    build("sdist", tree, folder)
    with tarfile.open(folder / f"{STEM}.tar.gz") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    build("wheel", folder / "unpacked" / STEM, folder)
    return folder


def packaged_files() -> set[str]:
    """All files of the package in the source tree."""
    package = PROJECT / "monitoring_pipeline"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(PROJECT).as_posix() for path in files}


def test_the_wheel_contains_all_files_of_the_package_and_no_tests(built: Path) -> None:
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    metadata = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    assert names - metadata == packaged_files()
    assert {name.rpartition(".")[2] for name in names - metadata} >= {"py", "j2", "css", "md", "typed"}
    assert f"{STEM}.dist-info/licenses/LICENSE" in metadata


def test_the_source_distribution_contains_the_package_and_no_tests(built: Path) -> None:
    with tarfile.open(built / f"{STEM}.tar.gz") as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    assert packaged_files() | {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith("monitoring_pipeline_tests")]


def test_the_installed_wheel_runs_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(site)]
    wheel = built / f"{STEM}-py3-none-any.whl"
    subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True, timeout=300)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MONITORING_")}

    def called(*command: str | Path) -> str:
        # The dependencies come from the tests' environment; PYTHONPATH puts the installed wheel before the source.
        variables = {**environment, "PYTHONPATH": str(site)}
        return subprocess.check_output(command, cwd=work, env=variables, text=True, timeout=300)

    script = site / "bin" / "monitoring-pipeline"
    version = monitoring_pipeline.__version__
    assert called(script, "--version") == f"monitoring-pipeline {version}\n"
    assert called(sys.executable, "-m", "monitoring_pipeline.cli", "--version") == f"monitoring-pipeline {version}\n"
    assert "Usage: " in called(script, "--help")
    code = (
        "import importlib.metadata, monitoring_pipeline; "
        "print(importlib.metadata.version('monitoring-pipeline'), monitoring_pipeline.__file__)"
    )
    assert called(sys.executable, "-c", code).split() == [version, str(site / "monitoring_pipeline" / "__init__.py")]
    assert list(work.iterdir()) == []
