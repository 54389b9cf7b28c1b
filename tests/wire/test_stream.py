"""A transport as a Trio stream."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from brewos_relay.wire.stream import TransportStream
from brewos_relay.wire.transport import READ_BYTES, Transport
from support.sockets import fill, read_available, reset, tcp_pair

LIMIT = 10_000


@asynccontextmanager
async def stream_pair() -> AsyncIterator[tuple[TransportStream, Transport, socket.socket]]:
    """Open a stream, the transport below it, and its peer, all with a deadline."""
    with trio.fail_after(5), tcp_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        yield TransportStream(transport), transport, far
        transport.close()


async def test_receiving_gives_what_is_there_in_pieces_of_the_wanted_size() -> None:
    async with stream_pair() as (stream, _, far):
        far.send(b"abcdef")
        assert await stream.receive_some(4) == b"abcd"
        assert await stream.receive_some(4) == b"ef"
        far.send(b"ghi")
        assert await stream.receive_some() == b"ghi"


async def test_receiving_waits_for_something_or_the_end() -> None:
    async with stream_pair() as (stream, _, far), trio.open_nursery() as nursery:

        async def receive() -> None:
            assert await stream.receive_some() == b"abc"
            assert await stream.receive_some(1) == b""
            assert await stream.receive_some() == b""

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        far.send(b"abc")
        await trio.testing.wait_all_tasks_blocked()
        far.close()


async def test_a_reset_is_told_from_an_end() -> None:
    async with stream_pair() as (stream, _, far):
        reset(far)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def test_sending_waits_until_the_system_has_it_all() -> None:
    async with stream_pair() as (stream, transport, far), trio.open_nursery() as nursery:
        data = bytes(range(256)) * 64 * 1024  # more than any system holds
        nursery.start_soon(stream.send_all, memoryview(data))
        await trio.testing.wait_all_tasks_blocked()
        assert transport.outbox_bytes
        received = b""
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(far)
            received += far.recv(READ_BYTES)
        assert received == data


async def test_nothing_to_send_is_no_trouble() -> None:
    async with stream_pair() as (stream, _, far):
        await stream.send_all(b"")
        await stream.send_all(bytearray(b"x"))
        assert read_available(far) == b"x"


async def test_what_was_cancelled_and_finds_no_room_breaks_the_stream() -> None:
    async with stream_pair() as (stream, transport, far):
        fill_transport(transport)
        with trio.move_on_after(0):
            await stream.send_all(bytes(LIMIT))
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(b"never written")
        assert transport.outbox_bytes == 0
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(bytes(LIMIT))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert transport.outbox_bytes == LIMIT
            nursery.cancel_scope.cancel()
        read_later = trio.lowlevel.wait_readable
        async with trio.open_nursery() as nursery:

            async def read_all() -> None:
                while True:
                    await read_later(far)
                    far.recv(READ_BYTES)

            nursery.start_soon(read_all)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
            nursery.cancel_scope.cancel()


async def test_waiting_for_room() -> None:
    async with stream_pair() as (stream, transport, far):
        await stream.wait_send_all_might_not_block()
        fill_transport(transport)
        with trio.move_on_after(0.01) as waiting:
            await stream.wait_send_all_might_not_block()
        assert waiting.cancelled_caught
        read_available(far)
        read_available(far)
        await stream.wait_send_all_might_not_block()


async def test_the_end_can_be_said_before_the_peer_says_it() -> None:
    async with stream_pair() as (stream, _, far):
        await stream.send_eof()
        assert far.recv(10) == b""
        far.send(b"late")
        assert await stream.receive_some() == b"late"


async def test_a_stream_that_was_closed_does_nothing_more() -> None:
    async with stream_pair() as (stream, transport, far):
        await stream.aclose()
        assert transport.closed
        assert far.recv(10) == b""
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()


async def test_whoever_waits_is_told_of_the_closing() -> None:
    async with stream_pair() as (stream, _, _far), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()


def fill_transport(transport: Transport) -> None:
    """Fill the system's buffer of a transport's socket."""
    with socket.socket(fileno=socket.dup(transport.fd)) as duplicate:
        fill(duplicate)


async def test_what_was_read_and_not_taken_goes_with_the_transport() -> None:
    async with stream_pair() as (stream, transport, far):
        far.send(b"abcdef")
        assert await stream.receive_some(2) == b"ab"
        assert stream.detach() == (transport, b"cdef")
        assert stream.detach() == (transport, b"")
