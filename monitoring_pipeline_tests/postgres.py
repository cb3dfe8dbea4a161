"""A PostgreSQL server for tests on loopback, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from monitoring_pipeline_tests import services
from monitoring_pipeline_tests.servers import free_port

USER = "monitoring"
PASSWORD = "open-sesame"


@dataclass(frozen=True)
class PostgresServer:
    """A running server; `USER` owns its databases and needs `PASSWORD`."""

    port: int

    def address(self, database: str, password: str = PASSWORD) -> str:
        """The database's SQLAlchemy address. It names the driver, because SQLAlchemy 2.1 has another default."""
        return f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Create an empty database and return its address."""
        self._run(f'CREATE DATABASE "{database}"')
        return self.address(database)

    def copy(self, template: str, database: str) -> str:
        """Create a copy of the database `template`, which must have no connections, and return its address."""
        self._run(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.address(database)

    def disconnect(self, database: str, for_good: bool) -> None:
        """End all connections to a database; `for_good` also refuses new ones."""
        if for_good:
            self._run(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        self._run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,))

    def _run(self, statement: str, values: tuple[str, ...] = ()) -> None:
        import sqlalchemy as sa

        engine = sa.create_engine(self.address("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement, values)


@contextmanager
def running() -> Iterator[PostgresServer]:
    """A server for the length of a `with` block; skips the test if PostgreSQL is not installed (in CI: fails it)."""
    services.starting("PostgreSQL")
    programs = _programs()
    if programs is None:
        reason = "PostgreSQL is not installed; run scripts/install-postgresql"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # Not below pytest's folder: the path of a socket must be short, and readable to the user that runs the server.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        data, port = folder / "data", free_port()
        _call(
            programs / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            f"--pwfile={folder / 'password'}",
            "--no-sync",
        )
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off -c max_connections=50"
        _call(programs / "pg_ctl", "-D", data, "-o", options, "-l", folder / "server.log", "-w", "-t", "60", "start")
        try:
            yield PostgresServer(port)
        finally:
            _call(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _programs() -> Path | None:
    """The folder of the newest installed version's programs; None if PostgreSQL is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: float(file.parts[-3]))
    if installed:
        return installed[-1].parent
    found = shutil.which("initdb")
    return Path(found).parent if found else None


def _call(*command: str | Path) -> None:
    """Run one of PostgreSQL's programs; they refuse to run as root."""
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*as_user, *map(str, command)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if done.returncode:
        pytest.fail(f"{command[0]}: {done.stderr.decode(errors='replace')[-2000:]}")
