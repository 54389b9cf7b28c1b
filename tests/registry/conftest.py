"""Registries for tests. Tests that apply to every kind of database run with each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from brewos_relay.registry.database import Database
from support.postgresql import PostgreSQL
from support.quick_registries import quick_registries as quick_registries


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database. Mark a test for one of them with, for example, `ON_SQLITE`."""
    return str(request.param)


@pytest.fixture
def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty registry: a file that does not exist yet, or a database with the tables."""
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path}/registry.db"
        return
    postgresql: PostgreSQL = request.getfixturevalue("postgresql")
    with postgresql.new_database() as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with Database.open(url) as database:
        yield database


@pytest.fixture
def db(database: Database) -> Iterator[Connection]:
    """A transaction that ends with the test."""
    with database.writing() as connection:
        yield connection
