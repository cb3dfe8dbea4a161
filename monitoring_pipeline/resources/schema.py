"""The schema of an MLflow database, as a revision of MLflow's migrations."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import TrackingError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import Engine


def revision_of(engine: Engine, shown: str) -> str | None:
    """Return the revision of the database, which messages call `shown`; None if it has no tables of MLflow.

    Raises:
        TrackingError: the database is newer than the installed MLflow.
        SQLAlchemyError: the database cannot be read.
    """
    import mlflow
    from alembic.migration import MigrationContext

    with engine.begin() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found and found not in _revisions():
        raise TrackingError(
            f"the MLflow database at {shown} has schema revision {found}, which the installed MLflow "
            f"{mlflow.__version__} does not know: upgrade mlflow here to the version that wrote the database"
        )
    return found


def check_not_newer(address: str, shown: str) -> None:
    """Return if the installed MLflow knows the schema of the database at `address`: otherwise it might write into it.

    Raises:
        TrackingError: the database is newer than the installed MLflow.
        Exception: whatever the database's driver raises.
    """
    from mlflow.store.db.utils import create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(address)
    try:
        revision_of(engine, shown)
    finally:
        engine.dispose()


def head_revision() -> str | None:
    """Return the revision that the installed MLflow reads and writes."""
    return _migrations().get_current_head()


@functools.cache
def _revisions() -> frozenset[str]:
    return frozenset(script.revision for script in _migrations().walk_revisions())


@functools.cache
def _migrations() -> ScriptDirectory:
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
