"""Incoming connections: plain or TLS, with or without a PROXY header, and the head of the first request."""

import errno
import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from brewos_relay.core.rate_limits import REPORT_EVERY_S
from brewos_relay.errors import PeerGone
from brewos_relay.server import incoming as incoming_module
from brewos_relay.server.incoming import (
    LINES_AT_ONCE,
    LINES_AT_ONCE_OF_EACH,
    LINGER_S,
    IncomingConnection,
    LingerSlots,
    PortPolicy,
    RefusalLog,
    accept_connections,
)
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.wire.handshake import Refusal, parse_head
from support.certificates import server_context, write_certificate
from support.sockets import count_open_files, reset, tcp_pair
from support.tls_client import TlsClient

LIMITS = ServerLimits(request_head_s=5.0, close_s=1.0)
HEAD = b"GET / HTTP/1.1\r\nHost: a"
REQUEST = HEAD + b"\r\n\r\n"
LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
BINARY = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack(
    "!BBH4s4sHHBH5s", 0x21, 0x11, 20, bytes((192, 0, 2, 7)), bytes(4), 56324, 443, 0x20, 5, b"\x01" + bytes(4)
)
BEHIND_PROXY = PortPolicy(is_proxy=lambda address: address == "127.0.0.1")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(write_certificate(tmp_path_factory.mktemp("tls")))


@asynccontextmanager
async def arriving() -> AsyncIterator[tuple[IncomingConnection, socket.socket]]:
    """Open a connection that has come from 127.0.0.1, port 9; see that its file is closed in the end."""
    before = count_open_files()
    with trio.fail_after(60), tcp_pair() as (near, far):
        incoming = IncomingConnection.accept(near, "127.0.0.1", 9, limits=LIMITS)
        yield incoming, far
        incoming.close()
        incoming.close()
    assert count_open_files() == before


async def test_a_plain_request() -> None:
    async with arriving() as (incoming, far):
        far.send(REQUEST + b"rest")
        assert await incoming.receive_head(port_policy=PortPolicy(), limits=LIMITS) == (HEAD, b"rest")
        assert (incoming.address, incoming.port, incoming.secure) == ("127.0.0.1", 9, False)


async def test_a_received_request_is_read_without_waiting() -> None:
    async with arriving() as (incoming, far):
        far.send(REQUEST)
        with trio.testing.assert_no_checkpoints():
            assert await incoming.receive_head(port_policy=PortPolicy(), limits=LIMITS) == (HEAD, b"")


@pytest.mark.parametrize("piece", [1, 7])
async def test_a_request_in_tiny_pieces(context: ssl.SSLContext, piece: int) -> None:
    port_policy = PortPolicy(tls_context=lambda: context)
    async with arriving() as (incoming, far), trio.open_nursery() as nursery:

        async def ask() -> None:
            client = TlsClient(far)
            await client.shake_hands()
            for start in range(0, len(REQUEST), piece):
                await client.send(REQUEST[start : start + piece])

        nursery.start_soon(ask)
        assert await incoming.receive_head(port_policy=port_policy, limits=LIMITS) == (HEAD, b"")
        assert incoming.secure


async def test_data_after_a_head_over_tls_is_read_with_it(context: ssl.SSLContext) -> None:
    port_policy = PortPolicy(tls_context=lambda: context)
    async with arriving() as (incoming, far), trio.open_nursery() as nursery:
        client = TlsClient(far)

        async def ask() -> None:
            await client.shake_hands()
            await client.send_raw(client.record(REQUEST + b"with it, ") + client.record(b"and behind it"))

        nursery.start_soon(ask)
        found = await incoming.receive_head(port_policy=port_policy, limits=LIMITS)
        assert found == (HEAD, b"with it, and behind it")
        incoming.release()
        incoming.close()
        assert not incoming.transport.closed
        await client.send(b"later")
        await incoming.transport.wait_readable()
        assert incoming.transport.read() == b"later"
        incoming.transport.close()


@pytest.mark.parametrize("header", [LINE, BINARY])
@pytest.mark.parametrize("pieces", ["one", "many", "with all"])
@pytest.mark.parametrize("secure", [False, True])
async def test_a_proxy_header_gives_the_address_of_the_client(
    context: ssl.SSLContext, header: bytes, pieces: str, secure: bool
) -> None:
    port_policy = PortPolicy(
        tls_context=(lambda: context) if secure else None, is_proxy=BEHIND_PROXY.is_proxy
    )
    async with arriving() as (incoming, far), trio.open_nursery() as nursery:
        client = TlsClient(far)

        async def ask() -> None:
            if pieces == "one":
                await client.send_raw(header)
                await trio.testing.wait_all_tasks_blocked()
            elif pieces == "many":
                for byte in header:
                    await client.send_raw(bytes([byte]))
                    await trio.testing.wait_all_tasks_blocked()
            first = b"" if pieces != "with all" else header
            if not secure:
                await client.send_raw(first + REQUEST)
                return
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.do_handshake()
            await client.send_raw(first + client.outgoing.read())
            await client.shake_hands()
            await client.send(REQUEST)

        nursery.start_soon(ask)
        assert await incoming.receive_head(port_policy=port_policy, limits=LIMITS) == (HEAD, b"")
        assert (incoming.address, incoming.port) == ("192.0.2.7", 56324)
        assert incoming.secure == (secure or header is BINARY)


async def test_a_request_of_the_proxy_itself_keeps_its_address() -> None:
    async with arriving() as (incoming, far):
        far.send(b"PROXY UNKNOWN\r\n" + REQUEST)
        await incoming.receive_head(port_policy=BEHIND_PROXY, limits=LIMITS)
        assert (incoming.address, incoming.port, incoming.secure) == ("127.0.0.1", 9, False)


@pytest.mark.parametrize("line", [b"\r\n", b"\n"])
@pytest.mark.parametrize("piece", [1, 100])
async def test_an_empty_line_before_a_request_is_skipped(line: bytes, piece: int) -> None:
    sent = line + REQUEST + b"rest"
    async with arriving() as (incoming, far), trio.open_nursery() as nursery:

        async def send() -> None:
            for start in range(0, len(sent), piece):
                far.send(sent[start : start + piece])
                await trio.testing.wait_all_tasks_blocked()

        nursery.start_soon(send)
        head, rest = await incoming.receive_head(port_policy=PortPolicy(), limits=LIMITS)
        assert head == HEAD
        assert b"rest".startswith(rest)


@pytest.mark.parametrize("sent", [b"\r\n\r\n", b"\n\n", b"\r\n\r", b"\rGET", b"\r\nget", b" \r\nGET"])
async def test_more_than_one_empty_line_is_refused(sent: bytes) -> None:
    refused = await refusal(PortPolicy(), sent + REQUEST)
    assert (refused.status, refused.message) == (400, "this port speaks plain HTTP")


async def refusal(port_policy: PortPolicy, *sent: bytes) -> Refusal:
    """Return the refusal of these bytes."""
    async with arriving() as (incoming, far):
        for data in sent:
            far.send(data)
        with pytest.raises(Refusal) as caught:
            await incoming.receive_head(port_policy=port_policy, limits=LIMITS)
    return caught.value


@pytest.mark.parametrize("sent", [REQUEST, b"\x16\x03\x01", b"PROXY nonsense\r\n"])
async def test_from_a_proxy_a_header_is_required(sent: bytes) -> None:
    assert (await refusal(BEHIND_PROXY, sent)).status == 400


async def test_a_proxy_header_from_another_address_is_refused(context: ssl.SSLContext) -> None:
    elsewhere = PortPolicy(is_proxy=lambda address: address == "192.0.2.1")
    for port_policy in (PortPolicy(), elsewhere):
        assert (await refusal(port_policy, BINARY + REQUEST)).status == 400
        async with arriving() as (incoming, far):
            far.send(LINE + REQUEST)
            head, _ = await incoming.receive_head(port_policy=port_policy, limits=LIMITS)
            with pytest.raises(Refusal, match="400"):
                parse_head(head)
    encrypted = PortPolicy(is_proxy=elsewhere.is_proxy, tls_context=lambda: context)
    for header in (LINE, BINARY):
        assert (await refusal(encrypted, header)).status == 400


async def test_a_tls_port_answers_plain_http_with_a_hint(context: ssl.SSLContext) -> None:
    port_policy = PortPolicy(tls_context=lambda: context)
    for sent in (REQUEST, b"G", b"\0\1\2"):
        refused = await refusal(port_policy, sent)
        assert (refused.status, refused.message) == (400, "this port speaks HTTPS")
        assert b"200 " not in refused.encode()


async def test_a_plain_port_answers_tls_with_a_hint() -> None:
    refused = await refusal(PortPolicy(), b"\x16\x03\x01\x02\x00")
    assert (refused.status, refused.message) == (400, "this port speaks plain HTTP")


async def test_over_tls_other_protocols_are_refused_over_tls(context: ssl.SSLContext) -> None:
    async with arriving() as (incoming, far), trio.open_nursery() as nursery:
        client = TlsClient(far)

        async def ask() -> None:
            await client.shake_hands()
            await client.send(b"\x16garbage")
            assert (await client.read_record()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert await client.read_record() == b"", "close_notify"
            await client.say_goodbye()
            far.close()

        nursery.start_soon(ask)
        with pytest.raises(Refusal) as caught:
            await incoming.receive_head(port_policy=PortPolicy(tls_context=lambda: context), limits=LIMITS)
        await incoming.refuse(caught.value, within_s=5)


async def test_a_head_that_is_too_large_is_refused() -> None:
    limits = ServerLimits(request_head_bytes=100)
    async with arriving() as (incoming, far):
        far.send(b"GET /" + b"a" * 100)
        with pytest.raises(Refusal, match="431"):
            await incoming.receive_head(port_policy=PortPolicy(), limits=limits)


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
async def test_a_peer_that_leaves_has_gone(context: ssl.SSLContext, sent: bytes) -> None:
    for port_policy in (PortPolicy(), BEHIND_PROXY) if not sent else (PortPolicy(),):
        async with arriving() as (incoming, far):
            far.send(sent)
            far.close()
            with pytest.raises(PeerGone):
                await incoming.receive_head(port_policy=port_policy, limits=LIMITS)
    async with arriving() as (incoming, far):
        reset(far)
        with pytest.raises(PeerGone):
            await incoming.receive_head(port_policy=PortPolicy(tls_context=lambda: context), limits=LIMITS)


async def test_silent_peers_are_dropped_in_time(
    context: ssl.SSLContext, autojump_clock: trio.testing.MockClock
) -> None:
    encrypted = PortPolicy(tls_context=lambda: context)
    for port_policy, sent in [
        (PortPolicy(), b""),
        (encrypted, b""),
        (encrypted, b"\x16"),
        (encrypted, b"\x16\x03\x01\x01"),
        (BEHIND_PROXY, b""),
        (BEHIND_PROXY, b"PROXY TCP4"),
        (BEHIND_PROXY, LINE),
    ]:
        async with arriving() as (incoming, far):
            far.send(sent)
            began = trio.current_time()
            with pytest.raises(PeerGone):
                await incoming.receive_head(port_policy=port_policy, limits=LIMITS)
            assert trio.current_time() - began == pytest.approx(LIMITS.request_head_s)


async def test_an_incomplete_head_is_answered_with_408(autojump_clock: trio.testing.MockClock) -> None:
    assert (await refusal(PortPolicy(), b"GET /")).status == 408


async def test_an_incomplete_proxy_header_blocks_no_other_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The clock jumps only while all tasks sleep: a polling task would stop it."""
    async with arriving() as (incoming, far):
        far.send(b"PROXY TCP4 192")
        with pytest.raises(PeerGone):
            await incoming.receive_head(port_policy=BEHIND_PROXY, limits=LIMITS)


async def test_a_refusal_arrives_although_the_request_was_not_read() -> None:
    async with arriving() as (incoming, far), trio.open_nursery() as nursery:
        far.send(b"unread")

        async def read() -> None:
            received = b""
            while True:
                await trio.lowlevel.wait_readable(far)
                data = far.recv(1000)
                if not data:
                    break
                received += data
            assert received.startswith(b"HTTP/1.1 400")
            far.close()

        nursery.start_soon(read)
        await incoming.refuse(Refusal(400, "no"), within_s=5)


@pytest.mark.parametrize("needs_tls", [False, True])
@pytest.mark.parametrize(
    ("sent", "has_body"),
    [
        (b"GET /" + b"a" * 9000, True),
        (b"HEAD /" + b"a" * 9000, False),
        (b"\r\nHEAD /" + b"a" * 9000, False),
        (b"HEAD /", False),
        (b"POST /", True),
    ],
)
async def test_the_refusal_of_a_head_has_no_body(
    sent: bytes,
    has_body: bool,
    needs_tls: bool,
    context: ssl.SSLContext,
    autojump_clock: trio.testing.MockClock,
) -> None:
    port_policy = PortPolicy(tls_context=lambda: context) if needs_tls else PortPolicy()
    async with arriving() as (incoming, far):
        far.send(sent)
        with pytest.raises(Refusal) as caught:
            await incoming.receive_head(port_policy=port_policy, limits=LIMITS)
        await incoming.refuse(caught.value, within_s=1)
        head, _, body = far.recv(10_000).partition(b"\r\n\r\n")
    assert f"HTTP/1.1 {caught.value.status} ".encode() in head
    assert bool(body) is has_body


async def test_a_refusal_waits_a_limited_time(autojump_clock: trio.testing.MockClock) -> None:
    async with arriving() as (incoming, _far):
        began = trio.current_time()
        await incoming.refuse(Refusal(400, "no"), within_s=1)
        assert trio.current_time() - began == pytest.approx(1)


FAREWELL = b"This is a webSocket client!"


async def test_refused_device_closes_its_plain_connection_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lingering = LingerSlots()
    async with arriving() as (incoming, far), trio.open_nursery() as nursery:
        began = trio.current_time()

        async def leave() -> None:
            await trio.sleep(0.4)
            assert far.recv(1000).startswith(b"HTTP/1.1 401 ")
            with pytest.raises(BlockingIOError):
                far.recv(1000)
            far.send(FAREWELL)
            far.close()

        nursery.start_soon(leave)
        await incoming.refuse(Refusal(401, "no"), within_s=5, lingering=lingering)
        assert trio.current_time() - began == pytest.approx(0.4)


async def test_refused_device_that_does_not_close_is_closed_after_1_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with arriving() as (incoming, far):
        began = trio.current_time()
        far.send(FAREWELL)
        await incoming.refuse(Refusal(401, "no"), within_s=5, lingering=LingerSlots())
        assert trio.current_time() - began == pytest.approx(LINGER_S)


async def test_stream_ends_at_once_while_too_many_devices_are_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lingering = LingerSlots(at_most=1)
    async with arriving() as (first, _first_far), arriving() as (second, second_far):
        async with trio.open_nursery() as nursery:

            async def refuse(incoming: IncomingConnection) -> None:
                await incoming.refuse(Refusal(503, "no"), within_s=5, lingering=lingering)

            nursery.start_soon(refuse, first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(refuse, second)
            await trio.testing.wait_all_tasks_blocked()
            assert second_far.recv(1000).startswith(b"HTTP/1.1 503 ")
            assert second_far.recv(1000) == b""
            second_far.close()
        with lingering.slot() as has_slot:
            assert has_slot  # the first one has freed its place


async def test_refused_device_over_tls_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with arriving() as (incoming, far):
        incoming.secure = True
        far.setblocking(False)
        await incoming.refuse(Refusal(401, "no"), within_s=0.1, lingering=LingerSlots())
        assert far.recv(1000).startswith(b"HTTP/1.1 401 ")
        assert far.recv(1000) == b""


async def test_a_connection_that_ends_before_it_is_handled_is_ignored(tmp_path: Path) -> None:
    near, far = socket.socketpair()  # refuses the options of TCP
    with far:
        incoming = IncomingConnection.accept(near, "127.0.0.1", 9, limits=LIMITS)
        far.send(REQUEST)
        assert await incoming.receive_head(port_policy=PortPolicy(), limits=LIMITS) == (HEAD, b"")
        incoming.close()


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
        await accept_connections(sockets, answer, limits=ServerLimits(), failure="a connection failed")

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
    backoff = incoming_module._AcceptBackoff()
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


async def test_a_peer_that_leaves_before_accept_does_not_cause_a_backoff(
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


async def test_no_memory_for_a_connection_ends_only_that_one(
    listening: Failing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object, **_options: object) -> IncomingConnection:
        raise MemoryError

    async with accepting_at(listening):
        with monkeypatch.context() as patched:
            patched.setattr(incoming_module, "IncomingConnection", fail)
            assert await greet(listening) == b""
        assert await greet(listening) == b"hello"
    assert "a connection failed" in caplog.text


def tell(refusals: RefusalLog, count: int, *, network: str, cause: str = "wrong_key") -> None:
    for number in range(count):
        refusals.log("refused %s: %d", network, number, cause=cause, network=network, extra={"status": 401})


async def test_a_network_that_is_refused_often_is_logged_in_few_lines_with_a_count(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refusals = RefusalLog()
    tell(refusals, 700, network="192.0.2.1")
    at_once = int(LINES_AT_ONCE_OF_EACH)
    assert caplog.messages == [f"refused 192.0.2.1: {number}" for number in range(at_once)]
    assert caplog.records[0].__dict__["status"] == 401
    tell(refusals, 1, network="192.0.2.2")
    assert caplog.messages[-1] == "refused 192.0.2.2: 0", "others are logged"
    caplog.clear()
    await trio.sleep(REPORT_EVERY_S)
    refusals.lines.report_if_due(trio.current_time())
    assert caplog.messages == [
        f"{700 - at_once} more log lines about refused connections from 192.0.2.1 were suppressed: wrong_key"
    ]


async def test_many_networks_have_a_common_limit(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refusals = RefusalLog()
    for number in range(200):
        tell(refusals, 5, network=f"192.0.2.{number}")
    assert len(caplog.messages) == LINES_AT_ONCE


async def test_connections_that_come_closely_gather_and_others_do_not_wait(
    autojump_clock: MockClock,
) -> None:
    accepted_at: list[float] = []

    async def answer(_incoming: IncomingConnection) -> None:
        accepted_at.append(trio.current_time() - began_at)

    began_at = trio.current_time()
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as peers:
        listening.setblocking(False)

        def connect() -> None:
            peers.enter_context(socket.create_connection(listening.getsockname()))

        async with trio.open_nursery() as nursery:
            accept = partial(
                accept_connections, [listening], answer, limits=LIMITS, failure="it failed", gather_s=1.0
            )
            nursery.start_soon(accept)
            connect()
            await trio.testing.wait_all_tasks_blocked()
            assert accepted_at == [0.0]
            connect()
            await trio.sleep(0.5)
            connect()
            await trio.sleep(1.0)
            assert accepted_at == pytest.approx([0.0, 1.0, 1.0])
            await trio.sleep(1.6)
            connect()
            await trio.testing.wait_all_tasks_blocked()
            assert accepted_at == pytest.approx([0.0, 1.0, 1.0, 3.1])
            nursery.cancel_scope.cancel()
