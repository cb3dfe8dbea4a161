"""The MLflow store: a one-line error when it cannot be used, and its experiments when it can."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.tracking import TrackingResource


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store with the experiments Default, agent and other, to copy from."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = MlflowClient(f"sqlite:///{file}")
    for name in ("agent", "other"):
        client.create_experiment(name, artifact_location=str(file.parent))
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The tracking URI of the test's own store."""
    file = tmp_path / "mlflow.db"
    file.write_bytes(empty_store.read_bytes())
    return f"sqlite:///{file}"


def failure(uri: str, experiments: list[str] | None = None) -> str:
    with pytest.raises(TrackingError) as error:
        TrackingResource(tracking_uri=uri, experiments=experiments or []).experiment_names()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_mistyped_sqlite_file_is_an_error_and_not_created(tmp_path: Path) -> None:
    file = tmp_path / "missing.db"

    message = failure(f"sqlite:///{file}")

    assert message.startswith(f"no MLflow store at sqlite:///{file}: no such file")
    assert not file.exists()


def test_a_file_that_is_not_a_database_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database " * 100, encoding="utf-8")

    assert failure(f"sqlite:///{file}").startswith(f"cannot use the MLflow store at sqlite:///{file}: ")


def test_a_database_newer_than_the_installed_mlflow_is_an_error_and_stays_as_it_is(store: str) -> None:
    file = Path(store.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        database.execute("DROP TABLE review_queues")  # MLflow would create the tables that it misses
    before = file.read_bytes()

    assert failure(store) == (
        f"the MLflow database at {store} has schema revision 0123456789ab, which the installed MLflow "
        f"{mlflow.__version__} does not know: upgrade mlflow here to the version that wrote the database"
    )
    assert file.read_bytes() == before


def test_a_database_older_than_the_installed_mlflow_is_an_error_that_names_mlflows_command(store: str) -> None:
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '867495a8f9d4'")

    assert "mlflow db upgrade" in failure(store)


def test_a_missing_server_is_an_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"

        assert failure(uri).startswith(f"no MLflow server answers at {uri}: Connection refused")


def test_a_missing_database_server_is_an_error_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        assert "Connection refused" in failure(f"postgresql://ada:hunter2@127.0.0.1:{port}/mlflow")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://[::1", "http:///nowhere", "gopher://nowhere"])
def test_a_malformed_address_is_an_error(uri: str) -> None:
    assert uri in failure(uri)


@pytest.fixture
def other_server() -> Iterator[str]:
    """The address of a server that is not MLflow's: it answers 404 to everything."""

    class NotFound(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_is_not_mlflows_is_an_error(other_server: str) -> None:
    assert failure(f"http://{other_server}").startswith(f"cannot use the MLflow store at http://{other_server}: ")


@pytest.mark.parametrize("password", ["hunter2", "hun@ter2", "hun%2Fter2"])
@pytest.mark.parametrize(
    "address",
    [
        lambda other_server: f"{other_server}",
        lambda other_server: "127.0.0.1:9",
        lambda other_server: "127.0.0.1:port",
        lambda other_server: "[::1",
    ],
    ids=["not MLflow's", "refused", "no port", "no address"],
)
def test_an_error_shows_no_password(other_server: str, address: Callable[[str], str], password: str) -> None:
    message = failure(f"http://ada:{password}@{address(other_server)}")

    assert not [part for part in ("ada", "hun", "ter2") if part in message]


def test_an_unknown_experiment_is_an_error_that_lists_the_known_ones(store: str) -> None:
    assert failure(store, ["agent", "agnet", "Other"]) == (
        f"no experiment 'agnet', 'Other' at {store}; it has 'Default', 'agent', 'other'"
    )


def test_without_names_all_experiments_are_monitored(store: str) -> None:
    assert TrackingResource(tracking_uri=store).experiment_names() == {"0": "Default", "1": "agent", "2": "other"}


def test_all_experiments_are_listed_when_they_fill_several_pages(store: str) -> None:
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database, database:
        database.executemany(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage, workspace) "
            "VALUES (?, ?, 'active', 'default')",
            [(number, f"many {number}") for number in range(100, 2300)],
        )

    assert len(TrackingResource(tracking_uri=store).experiment_names()) == 2203


def test_only_the_named_experiments_are_monitored(store: str) -> None:
    assert TrackingResource(tracking_uri=store, experiments=["other"]).experiment_names() == {"2": "other"}
