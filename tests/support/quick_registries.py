"""New registries of SQLite from the statements of a migrated one: 4 ms of CPU each, and not 40."""

import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import Connection

from brewos_relay.registry import migrations
from brewos_relay.registry.database import upgrade

_MIGRATED_BY_THEMSELVES = ("test_backup", "test_database", "test_db", "test_migrations", "test_schema")
"""Modules whose tests need the migrations themselves."""
_IDENTITY = 'INSERT INTO "registry_identity"'

_migrate = migrations._run_alembic


@cache
def _statements() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "registry.db"
        upgrade(f"sqlite:///{file}")
        with closing(sqlite3.connect(file)) as db:
            dumped = [line for line in db.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;")]
    assert sum(line.startswith(_IDENTITY) for line in dumped) == 1
    return [line for line in dumped if not line.startswith(_IDENTITY)]


def _run_statements(db: Connection, version: str | None) -> None:
    if version is not None or db.dialect.name != "sqlite":
        _migrate(db, version)
        return
    for statement in _statements():
        db.exec_driver_sql(statement)
    db.exec_driver_sql(f"{_IDENTITY} VALUES(1, '{secrets.token_hex(16)}')")


@pytest.fixture(scope="module", autouse=True)
def quick_registries(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make new registries of SQLite quickly, in most modules of a folder whose conftest imports this."""
    if request.node.path.stem in _MIGRATED_BY_THEMSELVES:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        _statements()
        patch.setattr(migrations, "_run_alembic", _run_statements)
        yield
