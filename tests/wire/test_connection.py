"""A WebSocket connection over real sockets, against clients that keep the rules and clients that do not."""

import contextlib
import dataclasses
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest
import trio
import trio.testing

from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.peer import PeerEnd, Receive
from brewos_relay.core.relay import open_relay
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message, encode
from brewos_relay.wire import frames
from brewos_relay.wire.connection import WebSocketConnection, client_connection, device_connection
from brewos_relay.wire.frames import FrameParser
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.polling import open_poller
from brewos_relay.wire.transport import Transport
from support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    ServerFrame,
    client_frame,
    close_frame,
    read_close,
    read_server_frames,
)
from support.peers import ScriptedPeer, ScriptedRemotePeer, run_peer
from support.sockets import count_open_files, fill, socket_pair, tcp_pair
from support.waiting import until

LIMITS = Limits(
    device_message_bytes=1000,
    client_message_bytes=500,
    outbox_bytes=10_000,
    message_s=5.0,
    stall_s=5.0,
    close_s=0.1,
    device_min_age_s=0.2,
)
HELLO = Delivery([Message(b"hello")])


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = count_open_files()
    yield
    assert count_open_files() == before


class Client:
    """The other end: sends given bytes, and reads."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""

    def send(self, data: bytes) -> None:
        assert self.sock.send(data) == len(data)

    async def read_some(self) -> bytes:
        """Read; empty bytes at the end of the stream, even if that is an error."""
        await trio.lowlevel.wait_readable(self.sock)
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            return b""
        self.received += data
        return data

    async def read_frame(self) -> ServerFrame:
        """Read up to the end of a frame, which must be the last."""
        while not self.received or len(self.received) < 2 + self.received[1]:
            assert await self.read_some(), "the stream is over"
        (frame,) = read_server_frames(self.received)
        self.received = b""
        return frame

    async def read_to_the_end(
        self, *, skip_bytes: int = 0, answer_code: int | None = None
    ) -> list[ServerFrame]:
        """Read to the end, answer a close frame with `answer_code`, and return the frames after `skip`."""
        while data := await self.read_some():
            if answer_code is not None and answer_code.to_bytes(2, "big") in data:
                self.send(close_frame(answer_code))
        return read_server_frames(self.received[skip_bytes:])


@dataclasses.dataclass
class Session:
    """The owner of a connection: runs it, closes it, and records its end."""

    connection: WebSocketConnection
    client: Client
    transport: Transport
    counters: Counters
    nursery: trio.Nursery
    received: list[Message] = dataclasses.field(default_factory=list)
    signs_of_life: int = 0
    pause_s: float = 0.0
    end: PeerEnd | None = None
    ran: trio.Event = dataclasses.field(default_factory=trio.Event)
    closed: trio.Event = dataclasses.field(default_factory=trio.Event)

    def receive(self, messages: Sequence[Message]) -> float:
        """Store the messages, and pause the connection as the test says."""
        self.received.extend(messages)
        self.signs_of_life += not messages
        return self.pause_s

    async def own(self, receive: Receive) -> None:
        try:
            self.end = await run_peer(self.connection, self.nursery, receive)
        finally:
            self.ran.set()
            await self.connection.aclose()
            self.closed.set()

    async def wait_received(self, count: int) -> list[Message]:
        while len(self.received) < count:  # noqa: ASYNC110 - what is tested knows nothing of events
            await trio.sleep(0.001)
        return self.received


class SocketStream:
    """The stream of a transport, for tests that change what it does."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, data: bytes) -> int:
        return self._socket.send(data)

    def recv(self, most_bytes: int) -> bytes:
        return self._socket.recv(most_bytes)


@contextlib.asynccontextmanager
async def open_session(
    *,
    pair: Callable[[], contextlib.AbstractContextManager[tuple[socket.socket, socket.socket]]] = socket_pair,
    initial: bytes = b"",
    min_age_s: float = 0.0,
    skip_oversize: bool = False,
    before_run: Callable[[Session], None] = lambda _session: None,
    receive: Receive | None = None,
    stream_class: type[SocketStream] | None = None,
    poller_class: type[Poller] | None = None,
    **limits: float,
) -> AsyncIterator[Session]:
    """Run a connection in a nursery, as a session of the relay does; everything ends within 5 s.

    **Owns:** the task that runs the connection. **Ends when:** the block is left.
    """
    if min_age_s > 0:
        limits["device_min_age_s"] = min_age_s
    all_limits = dataclasses.replace(LIMITS, **limits)  # type: ignore[arg-type]
    with trio.fail_after(5), pair() as (near, far):
        async with (
            open_poller() as poller,
            trio.open_nursery() as nursery,
            contextlib.AsyncExitStack() as stack,
        ):
            if poller_class is not None:
                poller = stack.enter_context(contextlib.closing(poller_class()))
            transport = Transport(
                near,
                outbox_limit_bytes=all_limits.outbox_bytes,
                lag_bytes=all_limits.lag_bytes,
                write_batch=poller.write_batch,
            )
            if stream_class is not None:
                transport._stream = stream_class(near)
            parser = FrameParser(
                max_message_bytes=all_limits.client_message_bytes, skip_oversize=skip_oversize
            )
            counters = Counters()
            connection = WebSocketConnection(
                transport,
                parser,
                poller=poller,
                limits=all_limits,
                counters=counters,
                is_held=min_age_s > 0,
                initial=initial,
            )
            session = Session(connection, Client(far), transport, counters, nursery)
            before_run(session)
            nursery.start_soon(session.own, receive or session.receive)
            yield session
            nursery.cancel_scope.cancel()
        assert transport.closed


def small_buffer() -> contextlib.AbstractContextManager[tuple[socket.socket, socket.socket]]:
    return socket_pair(send_buffer_bytes=4096)


# -- Relaying ---------------------------------------------------------------------------------------------


async def test_messages_are_handed_on_in_order() -> None:
    async with open_session() as session:
        for i in range(50):
            session.client.send(client_frame(TEXT if i % 2 else BINARY, b"%d" % i))
        received = await session.wait_received(50)
        assert received == [Message(b"%d" % i, bool(i % 2)) for i in range(50)]


async def test_a_message_may_come_in_pieces() -> None:
    async with open_session() as session:
        for octet in client_frame(TEXT, b"dribble"):
            session.client.send(bytes((octet,)))
            await trio.testing.wait_all_tasks_blocked()
        session.client.send(client_frame(TEXT, b"frag", fin=False))
        await trio.testing.wait_all_tasks_blocked()
        session.client.send(client_frame(CONTINUATION, b"ments"))
        assert await session.wait_received(2) == [Message(b"dribble"), Message(b"fragments")]


async def test_bytes_that_came_with_the_handshake_come_first() -> None:
    frame = client_frame(TEXT, b"second")
    async with open_session(initial=client_frame(TEXT, b"first") + frame[:4]) as session:
        session.client.send(frame[4:] + client_frame(TEXT, b"third"))
        received = await session.wait_received(3)
        assert [message.payload for message in received] == [b"first", b"second", b"third"]


async def test_deliveries_arrive() -> None:
    async with open_session() as session:
        assert session.connection.deliver(HELLO)
        assert await session.client.read_frame() == (TEXT, b"hello")
        assert session.connection.deliver(Delivery([Message(b"\xff", False)]))
        assert await session.client.read_frame() == (BINARY, b"\xff")


async def test_deliveries_before_run_are_written_later() -> None:
    filled_bytes = 0

    def block(session: Session) -> None:
        nonlocal filled_bytes
        filled_bytes = fill_transport(session.transport)
        assert session.connection.deliver(HELLO)
        assert session.transport.outbox_bytes

    async with open_session(pair=small_buffer, before_run=block) as session:
        await trio.testing.wait_all_tasks_blocked()
        while len(session.client.received) < filled_bytes + 7:
            await session.client.read_some()
        assert read_server_frames(session.client.received[filled_bytes:]) == [(TEXT, b"hello")]


def fill_transport(transport: Transport) -> int:
    duplicate = socket.socket(fileno=socket.dup(transport.fd))
    with duplicate:
        return fill(duplicate)


async def test_pings_are_answered() -> None:
    async with open_session(initial=client_frame(PING, b"early")) as session:
        assert await session.client.read_frame() == (PONG, b"early")
        session.client.send(client_frame(PING, mask=b"\0\0\0\0"))
        assert await session.client.read_frame() == (PONG, b"")
        session.client.send(client_frame(TEXT, b"a", fin=False) + client_frame(PING, b"between"))
        assert await session.client.read_frame() == (PONG, b"between")
        session.client.send(client_frame(PONG, b"unasked") + client_frame(CONTINUATION, b"b"))
        assert await session.wait_received(1) == [Message(b"ab")]


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_a_control_frame_is_a_sign_of_life(opcode: int) -> None:
    async with open_session() as session:
        for count in (1, 2):
            session.client.send(client_frame(opcode, b"x"))
            while session.signs_of_life < count:  # noqa: ASYNC110 - what is tested knows nothing of events
                await trio.sleep(0.001)
        session.client.send(client_frame(TEXT, b"a") + client_frame(opcode))
        assert await session.wait_received(1) == [Message(b"a")]
        assert session.signs_of_life == 2  # a message is a sign of life anyway


async def test_partial_frame_is_no_sign_of_life() -> None:
    async with open_session() as session:
        session.client.send(client_frame(PING)[:-1])
        await trio.testing.wait_all_tasks_blocked()
        assert session.signs_of_life == 0


async def test_a_ping_of_the_relay_is_an_empty_one() -> None:
    async with open_session() as session:
        session.connection.ping()
        assert await session.client.read_frame() == (PING, b"")
        session.connection.close(1000, "")
        session.connection.ping()
        assert read_close(await session.client.read_frame())[0] == 1000


async def test_a_peer_that_is_too_fast_is_not_read_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session() as session:
        session.pause_s = 0.2
        session.client.send(client_frame(TEXT, b"one"))
        await session.wait_received(1)
        session.pause_s = 0.0
        began_s = trio.current_time()
        session.client.send(client_frame(TEXT, b"two") + client_frame(PING, b"there?"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(session.received) == 1
        assert session.connection.deliver(HELLO)  # the other direction goes on
        assert await session.client.read_frame() == (TEXT, b"hello")
        await session.wait_received(2)
        assert trio.current_time() - began_s >= 0.15
        assert await session.client.read_frame() == (PONG, b"there?")


_SMALL = {
    "pings": client_frame(PING, b""),
    "pongs": client_frame(PONG, b""),
    "fragments": client_frame(CONTINUATION, b"x", fin=False),
}


@pytest.mark.parametrize("small", _SMALL.values(), ids=_SMALL)
async def test_flood_of_control_frames_pauses_reading(
    small: bytes, mock_clock: trio.testing.MockClock
) -> None:
    async with open_session(pair=tcp_pair) as session:
        session.client.send(client_frame(TEXT, b"begins", fin=False) + 240 * small)
        await _let_it_be_read()
        session.client.send(client_frame(CONTINUATION, b"and ends"))
        await _let_it_be_read()
        assert session.received == []
        mock_clock.jump(0.7)
        await _let_it_be_read()
        assert session.received == []
        mock_clock.jump(0.5)
        await _let_it_be_read()
        assert len(session.received) == 1
        assert not session.ran.is_set()
        mock_clock.rate = 1.0


async def _let_it_be_read() -> None:
    for _ in range(5):
        await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_few_small_frames_now_and_then_are_nothing() -> None:
    async with open_session() as session:
        session.client.send(6 * client_frame(PING, b""))
        for count in range(1, 300):
            while session.signs_of_life < count:
                await trio.lowlevel.checkpoint()
            session.client.send(4 * client_frame(PONG, b""))


async def test_a_pause_may_begin_with_the_first_bytes(autojump_clock: trio.testing.MockClock) -> None:
    def begin(session: Session) -> None:
        session.pause_s = 0.05

    first = client_frame(TEXT, b"first")
    async with open_session(initial=first, before_run=begin) as session:
        await session.wait_received(1)
        session.pause_s = 0.0
        session.client.send(client_frame(TEXT, b"second"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(session.received) == 1
        await session.wait_received(2)
        session.client.send(client_frame(TEXT, b"third"))
        await session.wait_received(3)


async def test_a_pause_is_not_the_time_of_the_message_that_has_begun(
    autojump_clock: trio.testing.MockClock,
) -> None:
    frame = client_frame(TEXT, b"abc")
    async with open_session(message_s=0.1) as session:
        session.pause_s = 0.3
        session.client.send(frame + frame[:3])
        await session.wait_received(1)
        session.pause_s = 0.0
        session.client.send(frame[3:])
        await session.wait_received(2)
        assert not session.ran.is_set()


async def test_a_peer_that_is_paused_can_be_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(close_s=4.0) as session:
        session.pause_s = 0.2
        session.client.send(client_frame(TEXT, b"one"))
        await session.wait_received(1)
        session.connection.close(4002, "replaced")
        assert read_close(await session.client.read_frame())[0] == 4002
        session.client.send(close_frame(1000))
        assert await session.client.read_to_the_end() == []
        await session.closed.wait()
        await trio.sleep(0.3)  # the task that resumes reading finds the connection ended


async def test_deliveries_of_a_pass_are_sent_at_its_end() -> None:
    async with open_session() as session:
        with session.connection._poller.write_batch:
            assert session.connection.deliver(HELLO)
            with pytest.raises(BlockingIOError):
                session.client.sock.recv(1)
        assert await session.client.read_frame() == (TEXT, b"hello")


# -- Closing by the peer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_close_frame_is_answered_with_the_same_code(code: int) -> None:
    async with open_session(close_s=5.0) as session:
        session.client.send(client_frame(TEXT, b"last") + close_frame(code, b"bye"))
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == code
        assert session.received == [Message(b"last")]
        await session.closed.wait()
        assert not session.connection.deliver(HELLO)


async def test_a_close_frame_without_a_code_is_answered_without_one() -> None:
    async with open_session() as session:
        session.client.send(client_frame(CLOSE))
        assert await session.client.read_to_the_end() == [(CLOSE, b"")]


async def test_a_close_frame_is_answered_even_if_the_message_before_it_fails(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    def receive(_messages: Sequence[Message]) -> float:
        raise MemoryError

    async with open_session(receive=receive, min_age_s=4.0, close_s=4.0) as session:
        began_at = trio.current_time()
        session.client.send(client_frame(TEXT, b"last") + close_frame(1000))
        (frame,) = await session.client.read_to_the_end()
        await session.closed.wait()
        assert read_close(frame)[0] == 1000
        assert trio.current_time() - began_at < 2
    assert caplog.text.count("a connection failed") == 1


async def test_a_close_frame_right_after_the_handshake_is_answered() -> None:
    async with open_session(initial=client_frame(TEXT, b"x") + close_frame(1000), min_age_s=4.0) as session:
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame) == (1000, "")
        assert session.received == [Message(b"x")]


async def test_messages_after_a_close_frame_are_ignored() -> None:
    async with open_session() as session:
        session.client.send(client_frame(PING, b"p") + close_frame(1000) + client_frame(TEXT, b"late"))
        frames = await session.client.read_to_the_end()
        assert frames[0] == (PONG, b"p")
        assert read_close(frames[1]) == (1000, "")
        assert session.received == []


async def test_a_peer_that_just_leaves_is_let_go() -> None:
    async with open_session(close_s=5.0, min_age_s=5.0) as session:
        session.client.send(client_frame(TEXT, b"last"))
        session.client.sock.close()
        await session.closed.wait()
        assert session.received == [Message(b"last")]


async def test_a_peer_whose_connection_breaks_is_let_go() -> None:
    async with open_session(pair=tcp_pair, close_s=5.0, min_age_s=5.0) as session:
        await trio.testing.wait_all_tasks_blocked()
        session.client.sock.close()  # with unread bytes, that is a reset
        await session.closed.wait()


async def test_a_peer_that_half_closes_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(close_s=5.0) as session:
        session.client.sock.shutdown(socket.SHUT_WR)
        assert await session.client.read_to_the_end() == []


# -- Breaking the rules -----------------------------------------------------------------------------------

FAULTS = {
    "unmasked": (client_frame(TEXT, b"a", mask=None), 1002),
    "reserved opcode": (client_frame(5, b"a"), 1002),
    "fragmented ping": (client_frame(PING, fin=False), 1002),
    "bad close code": (close_frame(1005), 1002),
    "garbage": (b"GET / HTTP/1.1\r\n\r\n", 1002),
    "bad UTF-8": (client_frame(TEXT, b"\xff"), 1007),
    "too large": (client_frame(BINARY, bytes(501)), 1009),
    "too large in fragments": (
        client_frame(BINARY, bytes(400), fin=False) + client_frame(CONTINUATION, bytes(101)),
        1009,
    ),
}


@pytest.mark.parametrize(("stream", "code"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_is_answered_with_a_close_frame_and_the_end(
    stream: bytes, code: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_session() as session:
        session.client.send(client_frame(TEXT, b"before") + stream + client_frame(TEXT, b"after"))
        (frame,) = await session.client.read_to_the_end()
        sent_code, reason = read_close(frame)
        assert sent_code == code
        assert reason
        assert session.received == [Message(b"before")]


async def test_a_peer_at_fault_may_leave_at_once() -> None:
    async with open_session(close_s=4.0) as session:
        session.client.send(client_frame(5))
        (frame,) = await session.client.read_to_the_end()  # which comes with the close frame
        assert read_close(frame)[0] == 1002
        session.client.sock.close()
        await session.closed.wait()


async def test_large_messages_can_be_read_past() -> None:
    async with open_session(skip_oversize=True) as session:
        large = client_frame(TEXT, b"x" * 501) + client_frame(BINARY, bytes(9000))
        session.client.send(large + client_frame(TEXT, b"small"))
        assert await session.wait_received(1) == [Message(b"small")]
        assert session.counters.oversized == 2
        session.client.send(large)
        while session.counters.oversized < 4:  # noqa: ASYNC110
            await trio.sleep(0.001)


@pytest.mark.parametrize(
    "begin", [b"\x81", client_frame(TEXT, b"abc")[:-1], client_frame(TEXT, b"abc", fin=False)]
)
@pytest.mark.parametrize("early", [False, True])
async def test_a_message_that_is_not_completed_in_time_ends_the_connection(
    begin: bytes, early: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_session(message_s=0.2, initial=begin if early else b"") as session:
        began_s = trio.current_time()
        if not early:
            session.client.send(begin)
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == CloseCode.POLICY_VIOLATION
        assert trio.current_time() - began_s >= 0.19


async def test_a_trickle_does_not_prolong_the_time_for_a_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(message_s=0.2) as session:
        session.client.send(client_frame(TEXT, fin=False))
        with contextlib.suppress(BrokenPipeError):
            while not session.ran.is_set():
                session.client.send(client_frame(CONTINUATION, fin=False) + client_frame(PING))
                await trio.sleep(0.01)
        frames = await session.client.read_to_the_end()
        assert read_close(frames[-1])[0] == CloseCode.POLICY_VIOLATION


async def test_completing_a_message_stops_its_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(message_s=0.1) as session:
        frame = client_frame(TEXT, b"abc")
        for i in range(3):
            session.client.send(frame[:3])
            await trio.sleep(0.02)
            session.client.send(frame[3:])
            await session.wait_received(i + 1)
        await trio.sleep(0.2)
        assert not session.ran.is_set()
        assert session.connection.deliver(HELLO)


async def test_every_message_has_its_own_time(autojump_clock: trio.testing.MockClock) -> None:
    # A busy stream is read in pieces that end anywhere, so one message is under way after almost every read.
    frame = client_frame(TEXT, b"abc")
    async with open_session(message_s=0.2) as session:
        session.client.send(frame[:3])
        for _ in range(20):
            await trio.sleep(0.03)
            assert not session.ran.is_set(), "closed although no message took longer than 0.03 s"
            session.client.send(frame[3:] + frame[:3])


@pytest.mark.parametrize("begins_another", [False, True])
async def test_arrived_bytes_count_before_the_message_timeout(
    begins_another: bool, autojump_clock: trio.testing.MockClock
) -> None:
    frame = client_frame(TEXT, b"abc")
    async with open_session(message_s=0.2) as session:
        session.client.send(frame[:3])
        await trio.sleep(0.05)
        session.connection._poller.unwatch(session.connection._transport.fd)  # its task does not run
        session.client.send(frame[3:] + (frame[:3] if begins_another else b""))
        await session.wait_received(1)
        assert not session.ran.is_set()
        if begins_another:
            (close_frame_,) = await session.client.read_to_the_end()
            assert read_close(close_frame_)[0] == CloseCode.POLICY_VIOLATION


async def test_a_peer_that_has_gone_is_not_closed_for_its_incomplete_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(message_s=0.2) as session:
        session.client.send(client_frame(TEXT, b"abc")[:3])
        await trio.sleep(0.05)
        session.connection._poller.unwatch(session.connection._transport.fd)
        session.client.sock.close()
        await session.ran.wait()
        assert session.end == PeerEnd("peer", None)


# -- Closing by the relay ---------------------------------------------------------------------------------


async def test_close_sends_a_close_frame_and_waits_for_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(close_s=4.0) as session:
        session.connection.close(4002, "replaced")
        session.connection.close(1011, "only the first call counts")
        assert not session.connection.deliver(HELLO)
        assert read_close(await session.client.read_frame()) == (4002, "replaced")
        await trio.testing.wait_all_tasks_blocked()
        assert not session.closed.is_set()
        session.client.send(client_frame(TEXT, b"crossed it") + close_frame(1000))
        assert await session.client.read_to_the_end() == []
        await session.closed.wait()
        assert session.received == []


async def test_close_does_not_wait_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(close_s=0.1) as session:
        began_s = trio.current_time()
        session.connection.close(1000, "")
        assert read_close(await session.client.read_frame()) == (1000, "")
        assert await session.client.read_to_the_end() == []
        assert 0.09 <= trio.current_time() - began_s < 2


async def test_close_does_not_wait_for_a_peer_that_leaves() -> None:
    async with open_session(close_s=4.0) as session:
        session.connection.close(1000, "")
        await session.client.read_frame()
        session.client.sock.close()
        await session.closed.wait()


async def test_close_before_running_counts() -> None:
    def close(session: Session) -> None:
        session.connection.close(1012, "restarting")

    async with open_session(before_run=close) as session:
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame) == (1012, "restarting")


async def test_close_from_within_receive_counts() -> None:
    def close(_messages: Sequence[Message]) -> float:
        session.connection.close(4000, "enough")
        return 0.0

    async with open_session(receive=close) as session:
        session.client.send(client_frame(TEXT, b"x") + client_frame(5))
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame) == (4000, "enough")


async def test_a_cancelled_connection_says_that_the_relay_is_shutting_down(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(close_s=0.1) as session:
        await trio.testing.wait_all_tasks_blocked()
        session.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == CloseCode.GOING_AWAY


async def test_a_connection_that_never_ran_can_be_closed() -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            connection = client_connection(
                Transport(near, outbox_limit_bytes=1000),
                poller=poller,
                limits=LIMITS,
                initial=close_frame(1000),
            )
            await connection.aclose()
            await connection.aclose()  # harmless
            assert not connection.deliver(HELLO)
            assert read_close(read_server_frames(far.recv(100))[0])[0] == CloseCode.GOING_AWAY


async def test_a_reason_that_is_too_long_is_cut() -> None:
    async with open_session() as session:
        session.connection.close(4000, "é" * 200)
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame) == (4000, "é" * 61)


async def test_a_peer_that_floods_while_it_is_closed_is_left_behind() -> None:
    async with open_session(close_s=0.2) as session:
        session.connection.close(1000, "")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not session.closed.is_set():
                with contextlib.suppress(BlockingIOError):
                    session.client.sock.send(client_frame(BINARY, bytes(400)) * 20)
                await trio.lowlevel.checkpoint()


async def test_a_spurious_wakeup_while_closing_is_harmless() -> None:
    class Hesitant(SocketStream):
        """Finds nothing to read every other time."""

        reads = 0

        def recv(self, most_bytes: int) -> bytes:
            self.reads += 1
            if self.reads % 2:
                raise BlockingIOError
            return super().recv(most_bytes)

    async with open_session(stream_class=Hesitant, close_s=4.0) as session:
        session.connection.close(1000, "")
        await session.client.read_frame()
        session.client.send(close_frame(1000))
        assert await session.client.read_to_the_end() == []


# -- Not closed too young ---------------------------------------------------------------------------------


def _close(session: Session) -> None:
    session.connection.close(4002, "replaced")


def _cancel(session: Session) -> None:
    session.nursery.cancel_scope.cancel()


def _break_the_rules(session: Session) -> None:
    session.client.send(client_frame(5))


@pytest.mark.parametrize(
    ("end", "code"),
    [(_close, 4002), (_cancel, 1001), (_break_the_rules, 1002)],
    ids=["close", "cancel", "fault"],
)
async def test_a_young_connection_is_held(
    end: Callable[[Session], None], code: int, autojump_clock: trio.testing.MockClock
) -> None:
    min_age_s = 0.3
    began_s = trio.current_time()
    async with open_session(min_age_s=min_age_s) as session:
        await trio.testing.wait_all_tasks_blocked()
        end(session)
        with trio.CancelScope(shield=True):
            assert not session.client.received
            first = await session.client.read_frame()
            assert trio.current_time() - began_s >= min_age_s - 0.01
            assert read_close(first)[0] == code
            assert await session.client.read_to_the_end() == []
            assert trio.current_time() - began_s < 3


class OutOfMemory(SocketStream):
    """Fails to read once, because there is no memory."""

    fails = True

    def recv(self, most_bytes: int) -> bytes:
        if self.fails:
            self.fails = False
            raise MemoryError
        return super().recv(most_bytes)


@pytest.mark.parametrize("min_age_s", [0.0, 0.3])
async def test_no_memory_to_read_ends_this_connection_with_1011_and_holds_a_young_one(
    min_age_s: float, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    began_s = trio.current_time()
    async with open_session(min_age_s=min_age_s, stream_class=OutOfMemory) as session:
        session.client.send(client_frame(TEXT, b"hello"))
        assert read_close(await session.client.read_frame())[0] == CloseCode.INTERNAL_ERROR
        assert trio.current_time() - began_s >= min_age_s - 0.01
        session.client.send(close_frame(CloseCode.INTERNAL_ERROR))
        await session.closed.wait()
    assert not session.received
    assert caplog.text.count("a connection failed") == 1


async def test_a_connection_that_fails_twice_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async with open_session() as session:
        await trio.testing.wait_all_tasks_blocked()
        session.connection.fail(MemoryError())
        session.connection.fail(MemoryError())
        assert read_close(await session.client.read_frame())[0] == CloseCode.INTERNAL_ERROR
    assert caplog.text.count("a connection failed") == 1


async def test_a_connection_that_is_old_enough_is_not_held(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(min_age_s=0.1, close_s=4.0) as session:
        await trio.sleep(0.12)
        began_s = trio.current_time()
        session.connection.close(1000, "")
        await session.client.read_frame()
        assert trio.current_time() - began_s < 2
        session.client.send(close_frame(1000))
        assert await session.client.read_to_the_end() == []


async def test_pause_of_the_process_during_a_hold_costs_no_close_frame(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with open_session(min_age_s=0.3) as session:
        session.connection.close(4002, "replaced")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(4)
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == 4002


async def test_pings_are_answered_while_a_connection_is_held() -> None:
    async with open_session(min_age_s=4.0, close_s=4.0) as session:
        session.connection.close(4002, "replaced")
        await session.ran.wait()
        session.client.send(client_frame(PING, b"still there?") + client_frame(TEXT, b"ignored"))
        assert await session.client.read_frame() == (PONG, b"still there?")
        session.client.send(close_frame(1000))
        assert len(await session.client.read_to_the_end()) == 1
        assert session.received == []


async def test_a_peer_that_closes_while_it_is_held_is_answered() -> None:
    async with open_session(min_age_s=4.0, close_s=4.0) as session:
        session.connection.close(4002, "replaced")
        await session.ran.wait()
        session.client.send(close_frame(3000))
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == 3000


async def test_a_peer_that_leaves_while_it_is_held_is_let_go() -> None:
    async with open_session(min_age_s=4.0, close_s=4.0) as session:
        session.connection.close(4002, "replaced")
        await session.ran.wait()
        session.client.sock.close()
        await session.closed.wait()


AGE_S = 0.4  # so 0.275 s after the first frame, or 0.525 s without one


async def closed_after_s(session: Session) -> float:
    """Close a connection and wait for the close frame; return its age then."""
    session.connection.close(4002, "replaced")
    assert read_close(await session.client.read_frame())[0] == 4002
    return trio.current_time() - session.connection._opened_at


async def test_a_connection_that_has_said_nothing_is_held_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(min_age_s=AGE_S) as session:
        assert await closed_after_s(session) >= AGE_S * 10.5 / 8


async def test_a_hold_counts_from_the_first_frame(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(min_age_s=AGE_S) as session:
        await trio.sleep(AGE_S * 0.75)
        session.client.send(client_frame(TEXT, b"the 101 was late"))
        await session.wait_received(1)
        assert await closed_after_s(session) >= AGE_S * (0.75 + 5.5 / 8)


async def test_a_first_frame_while_a_connection_is_held_prolongs_the_hold(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(min_age_s=AGE_S) as session, trio.open_nursery() as nursery:
        session.connection.close(4002, "replaced")
        await trio.sleep(AGE_S)
        session.client.send(client_frame(TEXT, b"the 101 was very late"))
        nursery.start_soon(session.closed.wait)
        assert read_close(await session.client.read_frame())[0] == 4002
        assert trio.current_time() - session.connection._opened_at >= AGE_S * (1 + 5.5 / 8)


async def test_a_first_frame_that_waits_to_be_read_counts_before_a_silent_connection_is_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(min_age_s=AGE_S) as session:
        session.connection._poller.unwatch(session.connection._transport.fd)  # its task does not run
        await trio.sleep(AGE_S * 10.5 / 8)
        session.client.send(client_frame(TEXT, b"the 101 was very late"))
        assert await closed_after_s(session) >= AGE_S * (10.5 + 5.5) / 8


async def test_bytes_before_the_101_do_not_prove_its_arrival(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(min_age_s=AGE_S, initial=client_frame(TEXT, b"early")) as session:
        await session.wait_received(1)
        assert await closed_after_s(session) >= AGE_S * 10.5 / 8


# -- Peers that do not read -------------------------------------------------------------------------------


async def test_a_peer_that_does_not_read_is_left_out_and_closed_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_session(pair=small_buffer, stall_s=0.2, close_s=4.0) as session:
        began_s = trio.current_time()
        delivered = 0
        delivery = Delivery([Message(b"x" * 100)])
        while session.connection.deliver(delivery):
            delivered += 1
            assert session.transport.outbox_bytes <= LIMITS.outbox_bytes
        assert delivered > LIMITS.outbox_bytes // 200
        assert not session.ran.is_set()  # left out, but not closed
        await session.ran.wait()
        assert trio.current_time() - began_s >= 0.19
        frames = await session.client.read_to_the_end(answer_code=CloseCode.TRY_AGAIN_LATER)
        assert read_close(frames.pop())[0] == CloseCode.TRY_AGAIN_LATER
        assert set(frames) == {(TEXT, b"x" * 100)}  # none is torn
        assert len(frames) <= delivered


async def test_kept_messages_have_their_own_limit() -> None:
    async with open_session(pair=small_buffer, lag_bytes=1000) as session:
        while session.connection.deliver(Delivery([Message(b"x" * 100)])):
            pass
        assert 800 < session.connection.backlog_bytes <= 1000
        while session.connection.deliver(Delivery([Message(b"y" * 100)]), keep=True):
            pass
        assert LIMITS.outbox_bytes - 200 < session.connection.backlog_bytes <= LIMITS.outbox_bytes


async def test_a_peer_that_never_reads_again_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(pair=small_buffer, stall_s=0.1, close_s=0.1) as session:
        while session.connection.deliver(Delivery([Message(b"x" * 100)])):
            pass
        await session.closed.wait()


async def test_a_peer_that_reads_again_gets_everything(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(pair=small_buffer) as session:
        delivered = 0
        for _ in range(3):
            while session.connection.deliver(Delivery([Message(b"%06d" % delivered)])):
                delivered += 1
            while len(session.client.received) < delivered * 8:
                await session.client.read_some()
            await trio.testing.wait_all_tasks_blocked()
            assert session.transport.outbox_bytes == 0
        frames = read_server_frames(session.client.received)
        assert frames == [(TEXT, b"%06d" % i) for i in range(delivered)]
        assert session.connection.deliver(HELLO)


async def test_a_peer_that_does_not_read_its_pongs_is_left_out() -> None:
    async with open_session(pair=small_buffer) as session:
        sent = 0
        for _ in range(400):
            with contextlib.suppress(BlockingIOError):
                sent += session.client.sock.send(client_frame(PING, bytes(125)) * 10)
            await trio.lowlevel.checkpoint()
            assert session.transport.outbox_bytes <= LIMITS.outbox_bytes + 10 * 127
        assert sent > 2 * LIMITS.outbox_bytes
        assert not session.ran.is_set()


async def test_a_peer_that_breaks_while_it_is_written_to_is_let_go() -> None:
    async with open_session(pair=small_buffer, close_s=4.0) as session:
        fill_transport(session.transport)
        for _ in range(5):
            assert session.connection.deliver(Delivery([Message(b"x" * 1000)]))
        await trio.testing.wait_all_tasks_blocked()
        session.client.sock.close()  # with unread bytes, that is a reset
        await session.closed.wait()


async def test_a_blocked_peer_can_be_closed() -> None:
    async with open_session(pair=small_buffer, close_s=4.0) as session:
        await trio.testing.wait_all_tasks_blocked()
        filled_bytes = fill_transport(session.transport)
        assert session.connection.deliver(HELLO)
        await trio.testing.wait_all_tasks_blocked()  # the writer waits
        session.connection.close(4002, "replaced")
        await session.ran.wait()
        frames = await session.client.read_to_the_end(skip_bytes=filled_bytes, answer_code=4002)
        assert frames[0] == (TEXT, b"hello")
        assert read_close(frames[1]) == (4002, "replaced")


@pytest.mark.parametrize("by_peer", [False, True])
async def test_a_peer_can_be_closed_in_the_moment_in_which_it_is_blocked(by_peer: bool) -> None:
    for _ in range(20):  # the order of the tasks is random
        async with open_session(pair=small_buffer, close_s=4.0) as session:
            await trio.testing.wait_all_tasks_blocked()
            filled_bytes = fill_transport(session.transport)
            if by_peer:  # there is no room for the answer to the ping
                session.client.send(client_frame(PING, b"hello") + close_frame(4002))
                await session.ran.wait()
            else:
                assert session.connection.deliver(HELLO)
                session.connection.close(4002, "replaced")
                await session.ran.wait()
            frames = await session.client.read_to_the_end(
                skip_bytes=filled_bytes, answer_code=None if by_peer else 4002
            )
            assert [frame.opcode for frame in frames] == [PONG if by_peer else TEXT, CLOSE]
            assert read_close(frames[1])[0] == 4002


async def test_a_peer_can_be_closed_in_the_moment_in_which_it_reads_again() -> None:
    for _ in range(20):  # the order of the tasks is random
        async with open_session(pair=small_buffer, close_s=4.0) as session:
            await trio.testing.wait_all_tasks_blocked()
            filled_bytes = fill_transport(session.transport)
            while session.connection.deliver(Delivery([Message(b"x" * 100)])):
                pass
            await trio.testing.wait_all_tasks_blocked()  # the writer waits
            session.client.received += session.client.sock.recv(filled_bytes)  # it can write again
            session.connection.close(4002, "replaced")
            frames = await session.client.read_to_the_end(skip_bytes=filled_bytes, answer_code=4002)
            assert read_close(frames[-1])[0] == 4002


# -- Faults of the relay ----------------------------------------------------------------------------------


def _fail(_messages: Sequence[Message]) -> float:
    raise ZeroDivisionError


async def test_an_error_in_receive_ends_this_connection_only(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_session(receive=_fail) as session:
        session.client.send(client_frame(TEXT, b"x"))
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == CloseCode.INTERNAL_ERROR
        assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_an_error_in_receive_for_the_first_bytes_ends_this_connection_only() -> None:
    async with open_session(receive=_fail, initial=client_frame(TEXT, b"x")) as session:
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == CloseCode.INTERNAL_ERROR


async def test_an_error_in_the_codec_ends_this_connection_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_payload: bytes, _is_text: bool) -> Message:
        raise ZeroDivisionError

    async with open_session() as session:
        with monkeypatch.context() as patch:
            patch.setattr(frames, "Message", fail)  # which joins the fragments of a message
            session.client.send(client_frame(TEXT, b"x", fin=False) + client_frame(CONTINUATION, b"y"))
            await trio.testing.wait_all_tasks_blocked(0.01)
        (frame,) = await session.client.read_to_the_end()
        assert read_close(frame)[0] == CloseCode.INTERNAL_ERROR
        assert [record.levelno for record in caplog.records] == [logging.ERROR]


def _keep_in(received: list[Message]) -> Receive:
    def keep(messages: Sequence[Message]) -> float:
        received.extend(messages)
        return 0.0

    return keep


# -- Devices and clients ----------------------------------------------------------------------------------


async def test_a_device_s_large_messages_are_read_past_and_it_is_not_closed_too_young(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller, trio.open_nursery() as nursery:
            began_s = trio.current_time()
            counters = Counters()
            connection = device_connection(
                Transport(near, outbox_limit_bytes=1000),
                poller=poller,
                limits=LIMITS,
                counters=counters,
                initial=client_frame(BINARY, bytes(1001))
                + client_frame(BINARY, bytes(1000))
                + client_frame(5),
            )
            received: list[Message] = []
            await run_peer(connection, nursery, _keep_in(received))
            assert received == [Message(bytes(1000), False)]
            assert counters.oversized == 1
            await connection.aclose()
            assert trio.current_time() - began_s >= LIMITS.device_min_age_s - 0.01
            assert read_close(read_server_frames(far.recv(100))[0])[0] == CloseCode.PROTOCOL_ERROR


async def test_buffers_of_an_anonymous_device_are_small() -> None:
    usual = Limits()
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller, trio.open_nursery() as nursery:
            transport = Transport(near, outbox_limit_bytes=usual.outbox_bytes, lag_bytes=usual.lag_bytes)
            counters = Counters()
            connection = device_connection(
                transport,
                poller=poller,
                limits=dataclasses.replace(usual, device_min_age_s=0.0),
                counters=counters,
                initial=client_frame(BINARY, bytes(4097))
                + client_frame(BINARY, bytes(4096))
                + client_frame(5),
                anonymous=True,
            )
            assert transport.outbox_limits == (8192, 8192)
            received: list[Message] = []
            await run_peer(connection, nursery, _keep_in(received))
            assert [len(message.payload) for message in received] == [4096]
            assert counters.oversized == 1
            far.close()
            await connection.aclose()


async def test_a_client_s_large_message_ends_its_connection() -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller, trio.open_nursery() as nursery:
            connection = client_connection(
                Transport(near, outbox_limit_bytes=1000),
                poller=poller,
                limits=LIMITS,
                initial=client_frame(TEXT, b"x" * 500) + client_frame(TEXT, b"x" * 501),
            )
            received: list[Message] = []
            await run_peer(connection, nursery, _keep_in(received))
            assert received == [Message(b"x" * 500)]
            await connection.aclose()
            assert read_close(read_server_frames(far.recv(200))[0])[0] == CloseCode.MESSAGE_TOO_BIG


async def test_messages_after_close_are_ignored() -> None:
    async with open_session() as session:
        session.client.send(client_frame(TEXT, b"too late"))
        await trio.testing.wait_all_tasks_blocked()
        session.received.clear()
        session.client.send(client_frame(TEXT, b"too late"))
        session.connection.close(4002, "replaced")
        data = session.connection.read()
        assert data
        session.connection.take(data)
        assert session.received == []


async def test_messages_after_the_end_are_ignored() -> None:
    async with open_session() as session:
        session.nursery.cancel_scope.cancel()
    session.connection.take(client_frame(TEXT, b"too late"))
    assert session.received == []


# -- How it ended -----------------------------------------------------------------------------------------


async def test_close_frame_of_the_peer_is_its_end() -> None:
    async with open_session() as session:
        session.client.send(close_frame(1001, b"bye"))
        await session.ran.wait()
        assert session.end == PeerEnd("peer", 1001, "bye")


async def test_a_connection_that_is_cut_ends_without_a_code() -> None:
    async with open_session() as session:
        session.client.sock.close()
        await session.ran.wait()
        assert session.end == PeerEnd("peer", None, "")


async def test_a_connection_that_fails_is_lost() -> None:
    async with open_session() as session:
        session.transport._break()
        session.client.sock.close()
        await session.ran.wait()
        assert session.end == PeerEnd("peer", None, "the connection was lost")


async def test_close_by_the_relay_is_its_end() -> None:
    async with open_session() as session:
        await trio.testing.wait_all_tasks_blocked()
        session.connection.close(4002, "another one came")
        await session.ran.wait()
        assert session.end == PeerEnd("relay", 4002, "another one came")


async def test_the_shortest_round_trip_is_remembered(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session() as session:
        await trio.testing.wait_all_tasks_blocked()
        connection = session.connection
        connection._measure_round_trip()  # an unsolicited pong
        for round_trip_s in (0.5, 0.25, 1.0):
            connection.ping()
            await trio.sleep(round_trip_s)
            connection._measure_round_trip()
        connection.close(1000, "")
        await session.ran.wait()
        assert session.end is not None
        assert session.end.round_trip_s == pytest.approx(0.25)


async def test_a_pong_is_noticed() -> None:
    async with open_session() as session:
        await trio.testing.wait_all_tasks_blocked()
        session.connection.ping()
        await session.client.read_frame()
        session.client.send(client_frame(PONG))
        while not session.signs_of_life:  # noqa: ASYNC110 - what is tested knows nothing of events
            await trio.sleep(0.001)
        session.connection.close(1000, "")
        await session.ran.wait()
        assert session.end is not None
        assert session.end.round_trip_s is not None


async def test_connection_is_freed_when_it_ends() -> None:
    def connections() -> int:
        return sum(type(each) is WebSocketConnection for each in gc.get_objects())

    gc.collect()
    before = connections()
    gc.disable()
    try:
        async with open_session(min_age_s=0.01) as session:
            session.client.send(client_frame(TEXT, b"{}") + client_frame(PING, b"1"))
            session.client.send(client_frame(TEXT, b"begun", fin=False))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert connections() == before + 1
            session.connection.close(1000, "")
            await session.closed.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
        del session
        assert connections() == before
    finally:
        gc.enable()


# -- Yielding to another instance -------------------------------------------------------------------------


async def test_held_connection_that_yields_is_closed_with_4002_once_its_key_is_safe(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = dataclasses.replace(LIMITS, device_min_age_s=0.3)
    status = encode({"type": "status"})
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller, open_relay(limits=limits, dialect=BREWOS) as relay:
            transport = Transport(
                near,
                outbox_limit_bytes=limits.outbox_bytes,
                lag_bytes=limits.lag_bytes,
                write_batch=poller.write_batch,
            )
            connection = WebSocketConnection(
                transport,
                FrameParser(max_message_bytes=limits.device_message_bytes, skip_oversize=True),
                poller=poller,
                limits=limits,
                counters=relay.counters,
                is_held=True,
            )
            machine, app, opened_at = Client(far), ScriptedPeer(), trio.current_time()
            relay.attach_client("BRW-00000001", app)
            attachment = relay.attach_device("BRW-00000001", connection)
            machine.send(client_frame(TEXT, status.payload))
            await until(lambda: relay.has_device("BRW-00000001"))
            relay.attach_remote_device("BRW-00000001", ScriptedRemotePeer())
            machine.send(client_frame(TEXT, status.payload))
            frames = await machine.read_to_the_end(answer_code=4002)
            assert trio.current_time() - opened_at >= 0.3
            await attachment.wait_closed()
            assert frames[-1].payload.startswith((4002).to_bytes(2, "big"))
            assert app.types == ["connected", "device_online", "status"], "once, and it did not go"
            assert relay.counters.received_from_devices == 1


async def test_connection_that_does_not_run_passes_nothing_on() -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        async with open_poller() as poller:
            connection = client_connection(
                Transport(near, outbox_limit_bytes=1000), poller=poller, limits=LIMITS
            )
            connection.take(client_frame(TEXT, b"early"))
            far.close()
            await connection.aclose()
