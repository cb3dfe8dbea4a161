"""Every column of the lake has a comment, and every comment has a column."""

from __future__ import annotations

from monitoring_pipeline.columns import COMMENTS
from monitoring_pipeline.tables import TABLES


def test_every_column_has_its_comment() -> None:
    assert COMMENTS.keys() == {name for table in TABLES for name in table.schema.names}
