"""INSERT … ON CONFLICT, which each database writes in its own way."""

from typing import Any

from sqlalchemy import Table


def insert_into(table: Table, dialect: str) -> Any:
    """Make an INSERT that can have an ON CONFLICT clause, for the dialect with this name.

    Only that dialect is imported: the one of PostgreSQL with its drivers takes 2 MiB in each process.
    """
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)
