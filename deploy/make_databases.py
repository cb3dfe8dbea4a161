"""Create the databases named on the command line on the server at POSTGRES_URL, if they do not exist."""

from __future__ import annotations

import os
import sys

import sqlalchemy as sa


def main() -> None:
    """Create the databases; exit with one line, without the password, if the server cannot be used."""
    address = sa.make_url(os.environ["POSTGRES_URL"])
    engine = sa.create_engine(address.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            existing = set(connection.scalars(sa.text("SELECT datname FROM pg_database")))
            for name in sys.argv[1:]:
                if name not in existing:
                    connection.exec_driver_sql(f"CREATE DATABASE {engine.dialect.identifier_preparer.quote(name)}")
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        sys.exit(f"cannot use {address.render_as_string(hide_password=True)}: {reason}; set POSTGRES_URL")


if __name__ == "__main__":
    main()
