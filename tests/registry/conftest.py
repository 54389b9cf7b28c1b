from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from brewos_relay.registry.database import Database


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with Database.open(url) as database:
        yield database


@pytest.fixture
def db(database: Database) -> Iterator[Connection]:
    """A transaction that ends with the test."""
    with database.writing() as connection:
        yield connection
