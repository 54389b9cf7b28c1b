"""What holds for all tests, and what tests of several folders share."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from support.postgresql import PostgreSQL, open_postgresql

# How long one example takes says how busy the machine is: the deadline is that of the whole test.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL of this process's own, started by the first test that needs it."""
    with open_postgresql() as cluster:
        yield cluster
