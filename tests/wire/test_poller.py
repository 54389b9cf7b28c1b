"""The poller, over real sockets, with epoll and without."""

import select
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import TypeAlias

import pytest
import trio
import trio.testing

from brewos_relay.core.counters import Counters
from brewos_relay.wire import polling
from brewos_relay.wire.poller import PolledConnection, Poller
from brewos_relay.wire.transport import Transport
from support.polled import Calls, NoMemoryOnce
from support.sockets import read_available, socket_pair

OpenPoller: TypeAlias = Callable[[], AbstractAsyncContextManager[Poller]]


@pytest.fixture(params=["epoll", "selectors"])
def open_poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OpenPoller:
    """Return pollers over the best interface of the system, and over `selectors`."""

    def open_this_kind() -> AbstractAsyncContextManager[Poller]:
        if request.param == "selectors":  # not earlier: Trio keeps its epoll
            monkeypatch.delattr(select, "epoll", raising=False)
        return polling.open_poller()

    return open_this_kind


class Owner(PolledConnection):
    """Reads a socket when it is told to, and counts that."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.calls = 0
        self.received = b""
        self.noticed = trio.Event()

    def read(self) -> bytes | None:
        try:
            return self.sock.recv(65536)
        except BlockingIOError:
            return None

    def take(self, data: bytes) -> None:
        self.calls += 1
        self.received += data
        self.noticed.set()

    def fail(self, error: Exception) -> None:
        raise error

    def watched_by(self, poller: Poller) -> "Owner":
        poller.watch(self.sock.fileno(), self)
        return self


def never(_data: bytes) -> None:
    """Process nothing."""
    pytest.fail("nothing was read")


async def settle() -> None:
    """Let the poller poll a few times."""
    for _ in range(10):
        await trio.sleep(0.001)


async def test_an_owner_is_called_when_its_socket_is_readable(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            owner = Owner(near).watched_by(poller)
            await settle()
            assert owner.calls == 0
            for data in (b"one", b"two"):
                far.send(data)
                await owner.noticed.wait()
                assert owner.received == data
                owner.received, owner.noticed = b"", trio.Event()
            poller.unwatch(near.fileno())


async def test_owner_is_called_again_for_unread_data(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        received: list[bytes] = []
        complete = trio.Event()

        def take(data: bytes) -> None:
            received.append(data)
            if len(received) == 5:
                complete.set()

        async with open_poller() as poller:
            poller.watch(near.fileno(), Calls(lambda: near.recv(1), take))
            far.send(b"abcde")
            await complete.wait()
            await settle()
            assert b"".join(received) == b"abcde"
            poller.unwatch(near.fileno())


async def test_an_owner_is_called_at_the_end_of_the_stream(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            ended = trio.Event()

            def take(data: bytes) -> None:
                assert data == b""
                poller.unwatch(near.fileno())
                ended.set()

            poller.watch(near.fileno(), Calls(lambda: near.recv(1), take))
            far.close()
            await ended.wait()


async def test_owner_is_not_called_after_unwatch(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            owner = Owner(near).watched_by(poller)
            poller.unwatch(near.fileno())
            poller.unwatch(near.fileno())  # harmless
            far.send(b"unheard")
            await settle()
            assert owner.calls == 0
            owner.watched_by(poller)  # and it can be watched again
            await owner.noticed.wait()
            assert owner.received == b"unheard"


async def test_an_owner_can_end_another_of_the_same_pass(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near_1, far_1), socket_pair() as (near_2, far_2):
        called: list[socket.socket] = []
        async with open_poller() as poller:

            def watch(own: socket.socket, other: socket.socket) -> None:
                def end_the_other(_data: bytes) -> None:
                    called.append(own)
                    poller.unwatch(other.fileno())

                poller.watch(own.fileno(), Calls(lambda: own.recv(1), end_the_other))

            watch(near_1, near_2)
            watch(near_2, near_1)
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
                    owners.append(Owner(near).watched_by(poller))
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
            poller.watch(near.fileno(), Calls(leave_it, never))
            await settle()
            assert calls > 1
            poller.unwatch(near.fileno())


def test_a_connection_defines_all_methods() -> None:
    connection = PolledConnection()
    calls: list[Callable[[], object]] = [
        connection.read,
        lambda: connection.take(b""),
        lambda: connection.fail(ValueError()),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()


async def test_a_poller_that_never_ran_can_be_closed() -> None:
    await trio.lowlevel.checkpoint()
    Poller().close()


async def test_some_passes_are_timed_if_messages_came() -> None:
    counters = Counters()
    with trio.fail_after(5), socket_pair() as (near, far):
        async with polling.open_poller(counters) as poller:
            owner = Owner(near)

            def take(data: bytes) -> None:
                owner.take(data)
                counters.received_from_devices += data.count(b"m")

            poller.watch(near.fileno(), Calls(owner.read, take))
            for count in range(40):
                owner.noticed = trio.Event()
                far.send(b"p" if count == 0 else b"mm")  # a pass without messages is not timed
                await owner.noticed.wait()
    assert sum(counters.latency.counts) == 2
    assert 0 < counters.latency.total < 5


@pytest.mark.parametrize("passes_before", [0, 1], ids=["timed", "not timed"])
async def test_owners_that_went_in_a_pass_are_not_called(open_poller: OpenPoller, passes_before: int) -> None:
    with trio.fail_after(5), socket_pair() as (one, far_one), socket_pair() as (two, far_two):
        async with open_poller() as poller:
            calls: list[int] = []

            def end_both(_data: bytes) -> None:
                calls.append(1)
                for sock in (one, two):
                    poller.unwatch(sock.fileno())

            for _ in range(passes_before):
                owner = Owner(one).watched_by(poller)
                far_one.send(b"x")
                await owner.noticed.wait()
                poller.unwatch(one.fileno())
            for sock in (one, two):
                poller.watch(sock.fileno(), Calls(Owner(sock).read, end_both))
            far_one.send(b"x")
            far_two.send(b"x")
            await settle()
    assert calls == [1]


async def test_pass_reads_all_then_processes_all_then_sends(
    open_poller: OpenPoller,
) -> None:
    happened: list[str] = []
    with trio.fail_after(5), ExitStack() as stack:
        pairs = [stack.enter_context(socket_pair()) for _ in range(3)]
        out, listener = stack.enter_context(socket_pair())
        transport = Transport(out, outbox_limit_bytes=1000)
        async with open_poller() as poller:
            transport.write_batch = poller.write_batch
            done = trio.Event()

            def watch(near: socket.socket) -> None:
                def read() -> bytes | None:
                    happened.append("read")
                    return near.recv(10)

                def take(data: bytes) -> None:
                    happened.append("take")
                    assert transport.write(data)
                    if happened.count("take") == 3:
                        happened.append(f"{len(read_available(listener))} sent")
                        done.set()

                poller.watch(near.fileno(), Calls(read, take))

            for near, far in pairs:
                far.send(b"x")
                watch(near)
            await done.wait()
            assert happened == ["read"] * 3 + ["take"] * 3 + ["0 sent"]
            assert read_available(listener) == b"xxx"
            assert transport.write(b"y")
            assert read_available(listener) == b"y"


async def test_writes_are_sent_if_another_owner_fails(open_poller: OpenPoller) -> None:
    with trio.fail_after(5), socket_pair() as (near, far), socket_pair() as (out, listener):
        transport = Transport(out, outbox_limit_bytes=1000)

        failed = trio.Event()

        def take(data: bytes) -> None:
            transport.write(data)
            raise ZeroDivisionError

        async with open_poller() as poller:
            transport.write_batch = poller.write_batch
            poller.watch(near.fileno(), Calls(lambda: near.recv(1), take, lambda _error: failed.set()))
            far.send(b"x")
            await failed.wait()
            await settle()
            poller.unwatch(near.fileno())
        assert read_available(listener) == b"x"


@pytest.mark.parametrize("error", [MemoryError, RecursionError, OSError])
@pytest.mark.parametrize("where", ["read", "take", "fail"])
async def test_failing_owner_is_told_and_affects_no_other(
    open_poller: OpenPoller, where: str, error: type[Exception]
) -> None:
    failures: list[Exception] = []

    def read() -> bytes:
        if where == "read":
            raise error
        return bad.recv(1)

    def take(_data: bytes) -> None:
        raise error

    def fail(problem: Exception) -> None:
        failures.append(problem)
        poller.unwatch(bad.fileno())
        if where == "fail":
            raise error

    with trio.fail_after(5), socket_pair() as (bad, far_bad), socket_pair() as (good, far_good):
        async with open_poller() as poller:
            poller.watch(bad.fileno(), Calls(read, take, fail))
            owner = Owner(good).watched_by(poller)
            far_bad.send(b"x")
            far_good.send(b"y")
            await owner.noticed.wait()
            await settle()
            poller.unwatch(good.fileno())
    assert owner.received == b"y"
    assert [type(each) for each in failures] == [error]


async def test_poller_goes_on_after_a_failure_of_its_own(
    open_poller: OpenPoller, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    with socket_pair() as (near, far):
        async with open_poller() as poller:
            poller._connections = NoMemoryOnce()
            owner = Owner(near).watched_by(poller)
            far.send(b"x")
            await owner.noticed.wait()
            poller.unwatch(near.fileno())
    assert owner.received == b"x"
    assert "could not be polled" in caplog.text


@pytest.mark.parametrize(("busy", "reads"), [(7, 7), (8, 128), (50, 128), (70, 128), (128, 128), (200, 128)])
async def test_busy_poller_polls_again_before_other_tasks(
    open_poller: OpenPoller, busy: int, reads: int
) -> None:
    with trio.fail_after(5), ExitStack() as stack:
        pairs = [stack.enter_context(socket_pair()) for _ in range(busy)]
        async with open_poller() as poller:
            turns = 0
            reads_in_turns: Counter[int] = Counter()

            def read() -> None:
                reads_in_turns[turns] += 1

            for near, far in pairs:
                far.send(b"x")
                poller.watch(near.fileno(), Calls(read, never))
            for turns in range(1, 20):  # noqa: B007
                await trio.lowlevel.checkpoint()
            for near, _ in pairs:
                poller.unwatch(near.fileno())
    assert {reads} <= set(reads_in_turns.values()) <= {reads, 2 * reads}  # Trio may deliver it twice
