import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core.limits import Limits
from brewos_relay.server import accepting
from brewos_relay.server.accepting import accept_connections
from brewos_relay.server.arrival import IncomingConnection


class Failing(socket.socket):
    """A listening socket whose `accept` fails for as long as there is a problem."""

    problem: BaseException | None = None

    def accept(self) -> tuple[socket.socket, object]:
        if self.problem is not None:
            raise self.problem
        return super().accept()


@pytest.fixture
def listening() -> Iterator[Failing]:
    with Failing() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        yield sock


@asynccontextmanager
async def accepting_at(*sockets: socket.socket) -> AsyncIterator[None]:
    async def answer(incoming: IncomingConnection) -> None:
        incoming.transport.write(b"hello")

    async def accept() -> None:
        await accept_connections(sockets, answer, limits=Limits(), failure="a connection failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        yield
        nursery.cancel_scope.cancel()


async def greet(listening: socket.socket) -> bytes:
    with trio.fail_after(10), trio.socket.socket() as client:
        await client.connect(listening.getsockname())
        return await client.recv(100)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, None])
async def test_shortage_is_logged_once_in_10_s_for_all_sockets_and_waited_out(
    listening: Failing, number: int | None, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    listening.problem = MemoryError() if number is None else OSError(number, "scripted backoff")
    with Failing() as other, socket.socket() as client, socket.socket() as second:
        other.problem = listening.problem
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.setblocking(False)
        client.connect(listening.getsockname())
        second.connect(other.getsockname())
        async with accepting_at(listening, other):
            with caplog.at_level(logging.WARNING):
                await trio.sleep(0.5)
                assert len(caplog.messages) == 1
                await trio.sleep(59)
            assert 6 <= len(caplog.messages) <= 7
            assert all("cannot accept connections: " in message for message in caplog.messages)
            counted = sum(int(message.rpartition("(")[2].partition(" ")[0]) for message in caplog.messages)
            assert 100 < counted < 150  # about once a second for each socket
            listening.problem = other.problem = None
            assert await greet(listening) == b"hello"
            assert await greet(other) == b"hello"


async def test_accepting_a_connection_shortens_the_next_pause(
    listening: Failing, autojump_clock: MockClock
) -> None:
    backoff = accepting._AcceptBackoff()
    error = OSError(errno.EMFILE, "scripted")
    took_s = []
    for _ in range(5):
        began_at = trio.current_time()
        await backoff.wait(error)
        took_s.append(round(trio.current_time() - began_at, 3))
    assert took_s == [0.1, 0.2, 0.4, 0.8, 1.0]
    backoff.end()
    began_at = trio.current_time()
    await backoff.wait(error)
    assert trio.current_time() - began_at == pytest.approx(0.1)


async def test_peer_that_goes_before_it_is_accepted_is_no_shortage(
    listening: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    class Once(Failing):
        def accept(self) -> tuple[socket.socket, object]:
            problem, self.problem = self.problem, None
            if problem is not None:
                raise problem
            return super().accept()

    with Once() as once:
        once.problem = OSError(errno.ECONNABORTED, "gone")
        once.bind(("127.0.0.1", 0))
        once.listen()
        once.setblocking(False)
        async with accepting_at(once):
            assert await greet(once) == b"hello"
    assert not caplog.messages


async def test_no_memory_for_a_connection_ends_that_one_alone(
    listening: Failing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object, **_options: object) -> IncomingConnection:
        raise MemoryError

    async with accepting_at(listening):
        with monkeypatch.context() as patched:
            patched.setattr(accepting, "IncomingConnection", fail)
            assert await greet(listening) == b""
        assert await greet(listening) == b"hello"
    assert "a connection failed" in caplog.text
