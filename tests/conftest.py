"""What tests of several folders share."""

from collections.abc import Iterator

import pytest

from support.postgresql import PostgreSQL, open_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL of this process's own, started by the first test that needs it."""
    with open_postgresql() as cluster:
        yield cluster
