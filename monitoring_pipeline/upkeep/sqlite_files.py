"""SQLite files keep the bytes of deleted rows in free pages until they are rewritten."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from monitoring_pipeline.errors import MonitoringError

PATIENCE_SECONDS = 60


def erase_free_pages(file: Path) -> None:
    """Rewrite the database without its free pages, and empty its write-ahead log.

    Raises:
        MonitoringError: another program keeps the database busy.
    """
    try:
        with closing(sqlite3.connect(file, timeout=PATIENCE_SECONDS, isolation_level=None)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        raise MonitoringError(
            f"cannot remove deleted bytes from {file}: {error}; stop what uses it, and try again"
        ) from error
