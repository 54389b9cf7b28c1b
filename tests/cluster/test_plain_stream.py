"""A socket as a stream."""

import socket

import pytest
import trio
import trio.testing

from brewos_relay.cluster.plain_stream import PlainStream


async def pair() -> tuple[PlainStream, PlainStream]:
    left, right = socket.socketpair()
    return PlainStream(left), PlainStream(right)


async def test_stream_keeps_the_rules_of_streams() -> None:
    with trio.fail_after(20):
        await trio.testing.wait_all_tasks_blocked()
        left, right = await pair()
        await left.send_all(b"hello")
        assert await right.receive_some(2) == b"he"
        assert await right.receive_some() == b"llo"
        await left.wait_send_all_might_not_block()
        await left.aclose()
        await left.aclose()
        assert await right.receive_some() == b""
        with pytest.raises(OSError, match="pipe"):
            await right.send_all(b"x")
        await right.aclose()


async def test_more_than_the_system_takes_is_written_in_pieces() -> None:
    left, right = await pair()
    data = bytes(range(256)) * 40_000
    received = bytearray()

    async def receive() -> None:
        while part := await right.receive_some():
            received.extend(part)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await left.send_all(data)
            await left.aclose()
        await right.aclose()
    assert received == data


async def test_socket_of_another_stream_is_taken_over() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        await stream.send_all(await stream.receive_some())

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            port = listener.socket.getsockname()[1]
            stream = PlainStream.from_trio(await trio.open_tcp_stream("127.0.0.1", port))
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.aclose()
            nursery.cancel_scope.cancel()
