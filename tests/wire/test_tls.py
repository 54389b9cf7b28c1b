"""TLS in a transport, against a client that sends exact records over real sockets."""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from brewos_relay.errors import PeerGone
from brewos_relay.wire.polling import open_poller
from brewos_relay.wire.tls import TlsTransport, _TlsStream, accept_tls, begins_like_tls
from brewos_relay.wire.transport import Transport, WriteBatch
from support.certificates import server_context, write_certificate
from support.polled import Calls
from support.sockets import RecordingOwner, count_open_files, fill, reset, socket_pair, tcp_pair
from support.tls_client import TlsClient

LIMIT = 300_000
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(write_certificate(tmp_path_factory.mktemp("tls")))


@pytest.fixture(params=VERSIONS, ids=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    found = request.param
    assert isinstance(found, ssl.TLSVersion)
    return found


@contextlib.asynccontextmanager
async def tls_pair(
    server: ssl.SSLContext, version: ssl.TLSVersion = VERSIONS[1], *, full: bool = False
) -> AsyncIterator[tuple[TlsTransport, TlsClient]]:
    """Open a transport and its client after their handshake; `full`: without room at first."""
    before = count_open_files()
    with trio.fail_after(10), socket_pair(send_buffer_bytes=4096) if full else tcp_pair() as (near, far):
        filled_bytes = fill(near) if full else 0
        transports: list[TlsTransport] = []
        client = TlsClient(far, version)
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                batch = WriteBatch()
                plain = Transport(near, outbox_limit_bytes=LIMIT, lag_bytes=LIMIT - 1, write_batch=batch)
                transports.append(await accept_tls(plain, server))
                assert transports[0].write_batch is batch
                assert plain.closed

            nursery.start_soon(accept)
            await client.send_pending()
            if full:
                with pytest.raises(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                await client.send_pending()
                await trio.testing.wait_all_tasks_blocked()
            await client.shake_hands(skip_bytes=filled_bytes)
        yield transports[0], client
        transports[0].close()
        assert transports[0].closed
    assert count_open_files() == before


async def read(transport: Transport) -> bytes:
    """Read the next data at the server, or the end."""
    while (data := transport.read()) is None:
        await transport.wait_readable()
    return data


def fill_outbox(transport: TlsTransport) -> bytes:
    """Write until data waits in the outbox, and return all of it."""
    written = b""
    while not transport.outbox_bytes:
        data = bytes([len(written) // 40_000 % 256]) * 40_000
        assert transport.write(data)
        written += data
    return written


def test_the_first_byte_tells_tls_from_everything_else() -> None:
    assert begins_like_tls(b"\x16\x03\x01")
    assert not begins_like_tls(b"GET")
    assert not begins_like_tls(b"")


# -- Handshake --------------------------------------------------------------------------------------------


async def test_a_handshake_waits_for_room(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version, full=True) as (transport, client):
        transport.write(b"hello")
        assert await client.read(5) == b"hello"


async def accept(transport: Transport, server: ssl.SSLContext) -> None:
    await accept_tls(transport, server)


@pytest.mark.parametrize("garbage", [b"\x16garbage" * 10, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff"])
async def test_garbage_fails_the_handshake(server: ssl.SSLContext, garbage: bytes) -> None:
    before = count_open_files()
    with trio.fail_after(5), tcp_pair() as (near, far):
        far.send(garbage)
        far.close()
        with pytest.raises(PeerGone, match="no TLS"):
            await accept_tls(Transport(near, outbox_limit_bytes=LIMIT), server)
    assert count_open_files() == before


async def test_a_peer_that_resets_is_gone(server: ssl.SSLContext) -> None:
    with trio.fail_after(5), tcp_pair() as (near, far):
        reset(far)
        with pytest.raises(PeerGone):
            await accept_tls(Transport(near, outbox_limit_bytes=LIMIT), server)


@pytest.mark.parametrize("resets", [False, True])
async def test_a_peer_that_leaves_in_the_middle_is_gone(
    server: ssl.SSLContext, version: ssl.TLSVersion, resets: bool
) -> None:
    with trio.fail_after(5), tcp_pair() as (near, far):
        client = TlsClient(far, version)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        await client.send_pending()
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await trio.testing.wait_all_tasks_blocked()
                if resets:
                    reset(far)
                else:
                    far.shutdown(socket.SHUT_WR)

            nursery.start_soon(leave)
            with pytest.raises(PeerGone):
                await accept_tls(Transport(near, outbox_limit_bytes=LIMIT), server)


async def test_a_peer_that_speaks_an_older_version_is_told_and_gone(server: ssl.SSLContext) -> None:
    with trio.fail_after(5), tcp_pair() as (near, far):
        newer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        newer.minimum_version = ssl.TLSVersion.TLSv1_3
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
                    await TlsClient(far, ssl.TLSVersion.TLSv1_2).shake_hands()

            nursery.start_soon(ask)
            with pytest.raises(PeerGone):
                await accept_tls(Transport(near, outbox_limit_bytes=LIMIT), newer)


async def test_a_handshake_that_stalls_can_be_cancelled(
    server: ssl.SSLContext, autojump_clock: trio.testing.MockClock
) -> None:
    before = count_open_files()
    with trio.fail_after(60), tcp_pair() as (near, far):
        far.send(b"\x16\x03\x01\x02\x00\x01")
        with trio.move_on_after(10) as late:
            await accept_tls(Transport(near, outbox_limit_bytes=LIMIT), server)
        assert late.cancelled_caught
        assert far.recv(10) == b""
    assert count_open_files() == before


# -- Reading and writing ----------------------------------------------------------------------------------


async def test_written_bytes_arrive(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        assert client.tls.version() == {VERSIONS[0]: "TLSv1.2", VERSIONS[1]: "TLSv1.3"}[version]
        assert transport.outbox_limits == (LIMIT, LIMIT - 1)
        assert transport.read() is None
        transport.owner = RecordingOwner(may_start=False)
        assert transport.write(b"from the relay")
        assert transport.write(b"")
        assert await client.read(14) == b"from the relay"
        await client.send(b"to the relay")
        assert await read(transport) == b"to the relay"
        assert transport.read() is None
        assert not transport.broken


async def test_data_that_comes_with_the_handshake_is_read_first(server: ssl.SSLContext) -> None:
    with trio.fail_after(5), tcp_pair() as (near, far):
        client = TlsClient(far)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                await client.send_pending()
                await client.read_socket()
                client.tls.do_handshake()
                client.tls.write(b"early")
                await client.say_goodbye()  # all of it in one segment

            nursery.start_soon(ask)
            transport = await accept_tls(Transport(near, outbox_limit_bytes=LIMIT), server)
        await trio.lowlevel.wait_readable(near)
        assert await read(transport) == b"early"
        assert await read(transport) == b""
        assert not transport.broken
        transport.close()


async def test_a_write_larger_than_a_record_is_written_at_once_if_there_is_room(
    server: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    async with tls_pair(server, version) as (transport, client):
        transport.owner = RecordingOwner(may_start=False)
        data = bytes(range(256)) * 200
        assert transport.write(data)
        assert transport.outbox_bytes == 0
        assert await client.read(len(data)) == data


async def test_all_available_records_are_read_together(
    server: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """A poller sees the socket only: no data may wait inside OpenSSL."""
    sizes = [1, 16_384, 5, 600, 16_384, 1]
    async with tls_pair(server, version) as (transport, client), open_poller() as poller:
        received = bytearray()
        data = b"".join(bytes([number]) * size for number, size in enumerate(sizes))
        records, at = [], 0
        for size in sizes:
            records.append(client.record(data[at : at + size]))
            at += size
        await client.send_raw(records[0] + records[1])
        assert await read(transport) == data[: sizes[0] + sizes[1]]
        await client.send_raw(b"".join(records[2:]))
        poller.watch(transport.fd, Calls(transport.read, received.extend))
        while len(received) < sum(sizes[2:]):
            await trio.lowlevel.checkpoint()
        poller.unwatch(transport.fd)
        assert received == data[sizes[0] + sizes[1] :]


async def test_last_byte_of_a_large_record_completes_it(
    server: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    data = bytes(range(256)) * 64
    async with tls_pair(server, version) as (transport, client):
        record = client.record(data)
        await client.send_raw(record[:-1])
        await transport.wait_readable()
        assert transport.read() is None
        await client.send_raw(record[-1:])
        assert await read(transport) == data


async def test_half_a_record_is_nothing_yet(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        record = client.record(b"a message")
        for part in (record[:3], record[3:20], record[20:-1]):
            await client.send_raw(part)
            await transport.wait_readable()
            assert transport.read() is None
        await client.send_raw(record[-1:])
        assert await read(transport) == b"a message"


async def test_a_large_write_is_sent_in_parts(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        transport.owner = RecordingOwner()
        transport._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 150_000)
        data = bytes(range(256)) * 4000
        assert transport.write(data)
        assert 0 < transport.outbox_bytes < len(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: transport.flush(stall_s=5))
            assert await client.read(len(data)) == data


async def test_held_writes_arrive_in_order(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """They are encrypted first, and sent later."""
    async with tls_pair(server, version) as (transport, client), tls_pair(server) as (other, other_client):
        transport.owner = other.owner = RecordingOwner(may_start=False)
        sizes = [600, 5000, LIMIT, 600]  # small, too large to encrypt ahead, and more than may be held
        data = [bytes([number]) * size for number, size in enumerate(sizes)]
        for each in data[:2]:
            with transport.write_batch:
                assert transport.write(each)
            assert await client.read(len(each)) == each
        other.write_batch = transport.write_batch
        async with trio.open_nursery() as nursery:
            transport.owner = RecordingOwner()
            with transport.write_batch:
                for each in data[2:]:
                    assert transport.write(each)
                assert other.write(b"of the other")
                assert other.write(b" connection")
            nursery.start_soon(lambda: transport.flush(stall_s=5))
            assert await client.read(LIMIT + 600) == data[2] + data[3]
        assert await other_client.read(23) == b"of the other connection"


async def test_write_that_is_held_twice_in_a_pass_is_encrypted_once(server: ssl.SSLContext) -> None:
    async with tls_pair(server) as (transport, client):
        transport.limit_outbox(1000)
        with transport.write_batch:
            assert transport.write(b"a" * 600)
            assert transport.write(b"b" * 600)
            assert transport.write_batch.held == [transport, transport]
        assert await client.read(1200) == b"a" * 600 + b"b" * 600


async def test_unsent_bytes_wait_and_are_written_in_order(
    server: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    async with tls_pair(server, version) as (transport, client):
        transport.owner = owner = RecordingOwner()
        expected = fill_outbox(transport)
        assert owner.starts == 1
        for size in (1, 20_000, 600):
            assert transport.write(bytes([size % 256]) * size)
            expected += bytes([size % 256]) * size
        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                assert await transport.flush(stall_s=5)

            nursery.start_soon(flush)
            assert await client.read(len(expected)) == expected
        assert transport.outbox_bytes == 0
        transport.write(b"more")
        assert await client.read(4) == b"more"


async def test_begun_write_is_finished_when_the_outbox_is_dropped(
    server: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    async with tls_pair(server, version) as (transport, client):
        expected = fill_outbox(transport)
        assert transport.write(b"to be forgotten" * 100)
        transport.drop_unsent_writes()
        assert transport.write(b"the end")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: transport.flush(stall_s=5))
            assert await client.read(len(expected) + 7) == expected + b"the end"


async def test_a_peer_that_takes_nothing_stalls(
    server: ssl.SSLContext, autojump_clock: trio.testing.MockClock
) -> None:
    async with tls_pair(server) as (transport, _):
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
            fill_outbox(transport)
            assert not await transport.flush(stall_s=1)


# -- Failures ---------------------------------------------------------------------------------------------


async def test_invalid_record_breaks_the_stream(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        await client.send_raw(b"GET / HTTP/1.1\r\n\r\n")
        await transport.wait_readable()
        assert transport.read() == b""
        assert transport.broken
        assert transport.write(b"lost")
        assert transport.read() == b""
        assert transport.outbox_bytes == 0


async def test_a_reset_breaks_the_stream(server: ssl.SSLContext) -> None:
    async with tls_pair(server) as (transport, client):
        reset(client.sock)
        assert transport.write(b"lost")
        assert transport.read() == b""
        assert transport.broken


async def test_end_without_close_notify_is_an_end(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        await client.send(b"last")
        client.sock.close()
        assert await read(transport) == b"last"
        assert await read(transport) == b""


async def test_records_before_an_invalid_one_are_read(
    server: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    async with tls_pair(server, version) as (transport, client), open_poller() as poller:
        received: list[bytes] = []
        await client.send_raw(client.record(b"valid") + b"GET / HTTP/1.1\r\n\r\n")
        poller.watch(transport.fd, Calls(transport.read, received.append))
        while b"" not in received:
            await trio.lowlevel.checkpoint()
        poller.unwatch(transport.fd)
        assert received[0] == b"valid"
        assert transport.broken


async def test_bytes_behind_the_end_of_one_connection_do_not_reach_another(server: ssl.SSLContext) -> None:
    """The connections share the buffers of OpenSSL."""
    async with (
        tls_pair(server) as (ending, leaving),
        tls_pair(server) as (broken, hostile),
        tls_pair(server) as (transport, client),
    ):
        leaving.tls.write(b"last")
        with pytest.raises(ssl.SSLWantReadError):
            leaving.tls.unwrap()
        await leaving.send_raw(leaving.outgoing.read() + b"behind the end")
        await hostile.send_raw(b"GET / HTTP/1.1\r\n\r\n" * 100)
        await client.send(b"first")
        assert await read(ending) == b"last"
        assert await read(transport) == b"first"
        await client.send(b"second")
        assert await read(broken) == b""
        assert await read(transport) == b"second"
        assert transport.write(b"answer")
        assert await client.read_record() == b"answer"


async def test_bytes_behind_an_end_that_comes_with_the_handshake_do_not_reach_another(
    server: ssl.SSLContext,
) -> None:
    with trio.fail_after(5), tcp_pair() as (near, far):
        client = TlsClient(far)
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                with pytest.raises(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                await client.send_pending()
                await client.read_socket()
                client.tls.do_handshake()
                with pytest.raises(ssl.SSLWantReadError):
                    client.tls.unwrap()
                await client.send_raw(client.outgoing.read() + b"behind the end")

            nursery.start_soon(leave)
            transport = await accept_tls(Transport(near, outbox_limit_bytes=LIMIT), server)
        async with tls_pair(server) as (other, other_client):
            await other_client.send(b"first")
            assert await read(other) == b"first"
        assert await read(transport) == b""
        transport.close()


@pytest.mark.interpreted(reason="it replaces methods of compiled classes")
async def test_writes_of_a_pass_are_encrypted_before_the_first_is_sent(
    server: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("encrypt", "send"):
        method = getattr(_TlsStream, name)

        def note(stream: _TlsStream, data: bytes, name: str = name, method: Any = method) -> Any:
            done.append(name)
            return method(stream, data)

        monkeypatch.setattr(_TlsStream, name, note)
    async with tls_pair(server) as (one, one_client), tls_pair(server) as (two, two_client):
        two.write_batch = one.write_batch
        with one.write_batch:
            assert one.write(b"one")
            assert two.write(b"two")
        assert done == ["encrypt", "encrypt", "send", "send"]
        assert (await one_client.read(3), await two_client.read(3)) == (b"one", b"two")


async def test_alert_that_cannot_be_sent_is_dropped(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """Half of a record has been sent, and the peer does not read the rest."""
    async with tls_pair(server, version) as (transport, client):
        fill_outbox(transport)
        await client.send_raw(b"GET / HTTP/1.1\r\n\r\n")
        assert await read(transport) == b""
        assert transport.broken


async def test_a_write_that_openssl_refuses_breaks_the_stream(server: ssl.SSLContext) -> None:
    async with tls_pair(server) as (transport, client):
        await client.send_raw(b"GET / HTTP/1.1\r\n\r\n")
        await transport.wait_readable()
        with transport.write_batch:
            assert transport.write(b"lost")
            assert transport.read() == b""
        assert transport.outbox_bytes == 0
        assert transport.broken


async def test_failure_to_encrypt_ends_only_its_connection(
    server: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoMemory:
        def write(self, _data: bytes) -> int:
            raise MemoryError

    async with tls_pair(server) as (transport, _), tls_pair(server) as (other, other_client):
        other.write_batch = transport.write_batch
        transport.owner = owner = RecordingOwner()
        with monkeypatch.context() as patch, transport.write_batch:
            patch.setattr(transport._tls, "_tls", NoMemory())
            assert transport.write(b"lost")
            assert other.write(b"kept")
            transport.write_batch.release()
        assert [type(error) for error in owner.failures] == [MemoryError]
        assert await other_client.read(4) == b"kept"


class ShortMemory:
    """A buffer of OpenSSL while the system has no memory for this many bytes."""

    def __init__(self, buffer: ssl.MemoryBIO, too_many_bytes: int) -> None:
        self._buffer = buffer
        self._too_many_bytes = too_many_bytes

    def read(self, most_bytes: int = -1) -> bytes:
        found = self._buffer.pending if most_bytes < 0 else min(most_bytes, self._buffer.pending)
        if found >= self._too_many_bytes:
            raise MemoryError
        return self._buffer.read(most_bytes)


async def test_what_a_failure_has_left_is_cleared_with_little_memory(
    server: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_pair(server) as (transport, _), tls_pair(server) as (other, other_client):
        other.write_batch = transport.write_batch
        transport.owner = owner = RecordingOwner()
        other.owner = RecordingOwner(may_start=False)
        buffers = transport._tls._buffers
        with monkeypatch.context() as patch:
            patch.setattr(buffers, "outgoing", ShortMemory(buffers.outgoing, 2000))
            with transport.write_batch:
                assert transport.write(b"lost" * 1000)
                assert other.write(b"kept")
        assert [type(error) for error in owner.failures] == [MemoryError]
        assert await other_client.read(4) == b"kept"


# -- The end ----------------------------------------------------------------------------------------------


async def test_close_notify_can_be_sent_first(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        transport.write(b"last")
        transport.finish_writing()
        transport.finish_writing()
        assert transport.write(b"too late")
        assert transport.outbox_bytes == 0
        assert await client.read_record() == b"last"
        assert await client.read_record() == b"", "close_notify"
        await client.read_socket()
        assert client.ended, "and the end of the stream"
        if version is VERSIONS[1]:  # where each end sends its own close_notify
            await client.send(b"the peer's last")
            assert await read(transport) == b"the peer's last"
        await client.say_goodbye()
        assert await read(transport) == b""


async def test_close_notify_is_sent_with_unread_data(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        await client.send(b"not read yet")
        await transport.wait_readable()
        transport.finish_writing()
        assert await client.read_record() == b""
        client.sock.close()
        while await read(transport):
            pass


async def test_close_notify_is_answered(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        await client.say_goodbye()
        assert await read(transport) == b""
        assert not transport.broken
        transport.finish_writing()
        await client.send_raw(b"what comes behind a goodbye is not read")
        assert transport.read() == b""
        assert await client.read_record() == b""


async def test_closing_sends_close_notify(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with tls_pair(server, version) as (transport, client):
        transport.write(b"last")
        transport.close()
        assert await client.read_record() == b"last"
        assert await client.read_record() == b""


async def test_data_before_close_notify_is_read_first(
    server: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """They come in one segment, and the peer keeps its end open."""
    async with tls_pair(server, version) as (transport, client), open_poller() as poller:
        received: list[bytes] = []
        client.tls.write(b"last")
        await client.say_goodbye()
        poller.watch(transport.fd, Calls(transport.read, received.append))
        while b"" not in received:
            await trio.lowlevel.checkpoint()
        poller.unwatch(transport.fd)
        assert received[:2] == [b"last", b""]
        assert not transport.broken


async def test_finishing_in_the_middle_of_a_record_sends_no_close_notify(server: ssl.SSLContext) -> None:
    async with tls_pair(server) as (transport, client):
        written = fill_outbox(transport)
        transport.finish_writing()
        received = b""
        with contextlib.suppress(EOFError):
            while record := await client.read_record():
                received += record
        assert client.ended
        assert written.startswith(received)
        assert transport.outbox_bytes


async def test_closing_in_the_middle_of_a_record_does_not_wait(server: ssl.SSLContext) -> None:
    async with tls_pair(server) as (transport, _):
        fill_outbox(transport)
        transport.close()
        assert transport.outbox_bytes == 0


async def test_closing_without_memory_closes_the_socket(
    server: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tls_pair(server) as (transport, client):
        buffers = transport._tls._buffers
        with monkeypatch.context() as patch:
            patch.setattr(buffers, "outgoing", ShortMemory(buffers.outgoing, 1))
            transport.close()
        assert transport.closed
        with pytest.raises(EOFError):  # without close_notify
            await client.read_record()
