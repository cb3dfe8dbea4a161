"""Read-only access to the database of a self-hosted MLflow, and its experiments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import sqlalchemy as sa
from mlflow.store.tracking.dbmodels.models import SqlExperiment
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.schema import head_revision, revision_of
from monitoring_pipeline.resources.tracking import in_a_line
from monitoring_pipeline.settings import without_password

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

BUSY_TIMEOUT_S = 20  # how long a read of SQLite waits for another process's commit; the same as in MLflow
CONNECT_TIMEOUT_S = 5


@contextmanager
def opened(address: str) -> Iterator[Engine]:
    """The MLflow database at `address` (sqlite:///… or postgresql://…), read-only; each transaction is a snapshot.

    Raises:
        TrackingError: the address is not an MLflow database, it cannot be reached, or it belongs to another version of
            MLflow. Database errors within the block are also raised as TrackingError.
    """
    shown = without_password(address)
    try:
        engine = _engine(address, shown)
        try:
            _check_revision(engine, shown)
            yield engine
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error
        raise TrackingError(
            f"cannot read the MLflow database at {shown}: {in_a_line(reason)}; check [archive] location, "
            "or [mlflow] tracking_uri if it is not set"
        ) from None  # the cause may hold the password


def experiment_names(engine: Engine, names: list[str]) -> dict[str, str]:
    """The experiments with these names, id -> name; all active experiments if `names` is empty.

    Raises:
        TrackingError: no experiment has one of the names.
    """
    query = sa.select(SqlExperiment.experiment_id, SqlExperiment.name, SqlExperiment.lifecycle_stage)
    with engine.begin() as connection:
        experiments = connection.execute(query.order_by(SqlExperiment.experiment_id)).all()
    active = {str(row.experiment_id): row.name for row in experiments if row.lifecycle_stage == "active"}
    if not names:
        return active
    found = {str(row.experiment_id): row.name for row in experiments if row.name in names}
    if missing := [name for name in names if name not in found.values()]:
        wanted, others = (", ".join(map(repr, names)) for names in (missing, sorted(active.values())))
        raise TrackingError(f"no experiment {wanted} at {without_password(str(engine.url))}; it has {others}")
    return found


def _engine(address: str, shown: str) -> Engine:
    url = sa.make_url(address)
    match url.get_backend_name():
        case "sqlite":
            return _sqlite(url)
        case "postgresql":
            if url.drivername == "postgresql":  # SQLAlchemy 2.1 would choose a driver that is not installed
                url = url.set(drivername="postgresql+psycopg2")
            options = f"{url.query.get('options', '')} -c default_transaction_read_only=on"
            timeout = {"connect_timeout": CONNECT_TIMEOUT_S}
            try:
                return sa.create_engine(
                    url, isolation_level="REPEATABLE READ", connect_args=timeout | {"options": options.strip()}
                )
            except ImportError as error:
                raise TrackingError(f"{error}: to read {shown}, install monitoring-pipeline[postgresql]") from None
        case other:
            raise TrackingError(
                f'source = "mlflow-sql" reads SQLite and PostgreSQL databases, not {other} '
                f"({shown}); set [archive] location"
            )


def _sqlite(url: URL) -> Engine:
    file = Path(url.database or "").absolute().as_uri()
    read_only = sa.URL.create("sqlite", database=file, query={"mode": "ro", "uri": "true"})
    # Python's driver opens no transaction for a SELECT. Without an isolation level, we can open our own.
    engine = sa.create_engine(read_only, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _check_revision(engine: Engine, shown: str) -> None:
    if (found := revision_of(engine, shown)) != (expected := head_revision()):
        raise TrackingError(
            f"the MLflow database at {shown} has schema revision {found}; the installed MLflow {mlflow.__version__} "
            f'needs {expected}: set [archive] source = "mlflow", or use the same version of MLflow on both sides'
        )
