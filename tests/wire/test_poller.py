"""The poller, over real sockets, with epoll and without."""

import select
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import pytest
import trio

from brewos_relay.core.counters import Counters
from brewos_relay.wire import poller as poller_module
from brewos_relay.wire.poller import Poller
from support.sockets import read_available, socket_pair

OpenPoller: TypeAlias = Callable[[], AbstractAsyncContextManager[Poller]]


@pytest.fixture(params=["epoll", "selectors"])
def open_poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OpenPoller:
    """Give pollers over the system's best interface, and over what `selectors` offers."""

    def open_this_kind() -> AbstractAsyncContextManager[Poller]:
        if request.param == "selectors":  # not earlier: Trio itself is to have its epoll
            monkeypatch.delattr(select, "epoll", raising=False)
        return poller_module.open_poller()

    return open_this_kind


class Owner:
    """Reads a socket whenever it is told to; counts that."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.calls = 0
        self.received = b""
        self.noticed = trio.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.received += read_available(self.sock)
        self.noticed.set()


async def settle() -> None:
    """Let the poller look a few times."""
    for _ in range(10):
        await trio.sleep(0.001)


async def test_an_owner_is_called_when_its_socket_is_readable(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            owner = Owner(near)
            poller.watch(near.fileno(), owner)
            await settle()
            assert owner.calls == 0
            for data in (b"one", b"two"):
                far.send(data)
                await owner.noticed.wait()
                assert owner.received == data
                owner.received, owner.noticed = b"", trio.Event()
            poller.unwatch(near.fileno())


async def test_an_owner_is_called_again_for_what_it_left(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        received: list[bytes] = []
        complete = trio.Event()

        def read_one_byte() -> None:
            received.append(near.recv(1))
            if len(received) == 5:
                complete.set()

        async with open_poller() as poller:
            poller.watch(near.fileno(), read_one_byte)
            far.send(b"abcde")
            await complete.wait()
            await settle()
            assert b"".join(received) == b"abcde"
            poller.unwatch(near.fileno())


async def test_an_owner_is_called_at_the_end_of_the_stream(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            ended = trio.Event()

            def on_readable() -> None:
                assert near.recv(1) == b""
                poller.unwatch(near.fileno())
                ended.set()

            poller.watch(near.fileno(), on_readable)
            far.close()
            await ended.wait()


async def test_nobody_is_called_after_unwatch(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            owner = Owner(near)
            poller.watch(near.fileno(), owner)
            poller.unwatch(near.fileno())
            poller.unwatch(near.fileno())  # harmless
            far.send(b"unheard")
            await settle()
            assert owner.calls == 0
            poller.watch(near.fileno(), owner)  # and it can be watched again
            await owner.noticed.wait()
            assert owner.received == b"unheard"


async def test_an_owner_can_end_another_of_the_same_pass(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near_1, far_1), socket_pair() as (near_2, far_2):
        called: list[socket.socket] = []
        async with open_poller() as poller:

            def end_the_other(own: socket.socket, other: socket.socket) -> None:
                called.append(own)
                own.recv(1)
                poller.unwatch(other.fileno())

            poller.watch(near_1.fileno(), lambda: end_the_other(near_1, near_2))
            poller.watch(near_2.fileno(), lambda: end_the_other(near_2, near_1))
            far_1.send(b"x")
            far_2.send(b"x")
            await settle()
            assert len(called) == 1


async def test_more_sockets_than_one_pass_takes_are_all_read(open_poller: OpenPoller) -> None:
    # More than a pass, but few enough for the common limit of 1024 open files.
    with trio.fail_after(5):
        pairs = [socket.socketpair() for _ in range(200)]
        try:
            async with open_poller() as poller:
                owners = []
                for near, far in pairs:
                    near.setblocking(False)
                    far.send(b"hello")
                    owner = Owner(near)
                    owners.append(owner)
                    poller.watch(near.fileno(), owner)
                for owner in owners:
                    await owner.noticed.wait()
                assert all(owner.received == b"hello" for owner in owners)
                for near, _ in pairs:
                    poller.unwatch(near.fileno())
        finally:
            for near, far in pairs:
                near.close()
                far.close()


async def test_others_get_their_turn_beside_a_socket_that_is_always_readable(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            calls = 0

            def leave_it() -> None:
                nonlocal calls
                calls += 1

            far.send(b"x")
            poller.watch(near.fileno(), leave_it)
            await settle()
            assert calls > 1
            poller.unwatch(near.fileno())


async def test_an_error_in_an_owner_shows_where_the_poller_was_opened(open_poller: OpenPoller) -> None:
    # Owners are to deal with their own errors; one that does not is a fault of the program.
    def fail() -> None:
        raise ZeroDivisionError

    with trio.fail_after(5), socket_pair() as (near, far):
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with open_poller() as poller:
                poller.watch(near.fileno(), fail)
                far.send(b"x")
                await trio.sleep_forever()
        assert caught.group_contains(ZeroDivisionError)


async def test_a_poller_gives_its_descriptor_back(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, _):
        async with open_poller() as poller:
            poller.watch(near.fileno(), lambda: None)
        with pytest.raises(ValueError, match=r"closed|-1"):
            poller.watch(near.fileno(), lambda: None)


async def test_a_poller_that_never_ran_can_be_closed() -> None:
    await trio.lowlevel.checkpoint()
    Poller().close()


async def test_some_passes_are_timed_if_messages_came() -> None:
    counters = Counters()
    with trio.fail_after(5), socket_pair() as (near, far):
        async with poller_module.open_poller(counters) as poller:
            owner = Owner(near)

            def read() -> None:
                owner()
                if owner.received.endswith(b"m"):
                    counters.received_from_devices += 1

            poller.watch(near.fileno(), read)
            for count in range(40):
                owner.noticed = trio.Event()
                far.send(b"p" if count == 0 else b"m")  # what carries no message is not timed
                await owner.noticed.wait()
    assert sum(counters.latency.counts) == 1
    assert 0 < counters.latency.total < 5


@pytest.mark.parametrize("passes_before", [0, 1], ids=["timed", "not timed"])
async def test_owners_that_went_in_a_pass_are_not_called(open_poller: OpenPoller, passes_before: int) -> None:
    with trio.fail_after(5), socket_pair() as (one, far_one), socket_pair() as (two, far_two):
        async with open_poller() as poller:
            calls: list[int] = []

            def end_both() -> None:
                calls.append(1)
                for sock in (one, two):
                    poller.unwatch(sock.fileno())

            for _ in range(passes_before):
                owner = Owner(one)
                poller.watch(one.fileno(), owner)
                far_one.send(b"x")
                await owner.noticed.wait()
                poller.unwatch(one.fileno())
            for sock in (one, two):
                poller.watch(sock.fileno(), end_both)
            far_one.send(b"x")
            far_two.send(b"x")
            await settle()
    assert calls == [1]
