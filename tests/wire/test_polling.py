"""The poller's task, from the beginning of the block to its end."""

import pytest
import trio

from brewos_relay.wire.hosting import free_host, run_hosted
from brewos_relay.wire.poller import PolledConnection
from brewos_relay.wire.polling import open_poller
from support.polled import Calls
from support.sockets import socket_pair


class Owner(PolledConnection):
    """Reads nothing."""

    def read(self) -> bytes | None:
        return None

    def take(self, data: bytes) -> None:
        raise AssertionError

    def fail(self, error: Exception) -> None:
        raise error


async def test_a_poller_gives_its_descriptor_back() -> None:
    with trio.fail_after(5), socket_pair() as (near, _):
        async with open_poller() as poller:
            poller.watch(near.fileno(), Owner())
        with pytest.raises(ValueError, match=r"closed|-1"):
            poller.watch(near.fileno(), Owner())


async def test_failing_block_ends_the_poller() -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(5), pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="the block")):
        async with open_poller():
            assert trio.lowlevel.current_statistics().tasks_living == tasks + 1
            raise ValueError("the block failed")
    assert trio.lowlevel.current_statistics().tasks_living == tasks


def test_poller_is_read_by_the_clock_of_a_hosted_run() -> None:
    async def main() -> None:
        with trio.fail_after(5), socket_pair() as (near, far):
            async with open_poller() as poller, open_poller():
                came = trio.Event()
                poller.watch(near.fileno(), Calls(lambda: near.recv(10), lambda _data: came.set()))
                far.send(b"x")
                await came.wait()
                poller.unwatch(near.fileno())
            assert free_host() is not None

    run_hosted(main)
