"""Tests of simulator.firmware.firmware_connection: errors of an attempt, and slow connections."""

import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from brewos_relay.client.endpoint import Endpoint, RelayUnreachable, parse_url
from brewos_relay.client.websocket import RelayRefused
from brewos_relay.simulator.firmware.firmware_connection import (
    MOST_WAITING,
    FirmwareConnection,
    HostNotFound,
    open_firmware_connection,
    register,
)
from brewos_relay.simulator.firmware.firmware_frames import TEXT, Frame
from support.waiting import until
from support.websocket_server import answering, open_server
from support.wire_client import accept_value, frame

DEADLINE_S = 10.0


async def connect(
    endpoint: Endpoint,
    use: Callable[[FirmwareConnection], Awaitable[None]] | None = None,
    *,
    faithful: bool = True,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    async with (
        trio.open_nursery() as nursery,
        open_firmware_connection(
            endpoint,
            device_id="BRW-0000ABCD",
            key="k" * 43,
            spawn=nursery.start_soon,
            rng=random.Random(1),
            ssl_context=ssl_context,
            faithful=faithful,
        ) as connection,
    ):
        if use is not None:
            await use(connection)


async def problem_with(endpoint: Endpoint, **options: Any) -> BaseException:
    """Try to connect; return the exception, without the groups of nurseries."""
    with trio.fail_after(DEADLINE_S):
        try:
            await connect(endpoint, **options)
        except Exception as problem:
            found: BaseException = problem
            while isinstance(found, BaseExceptionGroup):
                (found,) = found.exceptions
            return found
    raise AssertionError("there is a connection")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 101 Yes\r\n\r\n", "firmware does not accept"),
        (b"SSH-2.0-x\r\n\r\n", "not a relay"),
    ],
)
async def test_other_answers_raise(answer: bytes, told: str) -> None:
    async with open_server(answering(answer)) as url:
        problem = await problem_with(parse_url(url))
    assert isinstance(problem, RelayUnreachable)
    assert told in str(problem)


async def test_refusal_has_text_and_retry_after() -> None:
    answer = b'HTTP/1.1 503 Later\r\nRetry-After: 7\r\nContent-Length: 16\r\n\r\n{"error":"Full"}'
    async with open_server(answering(answer)) as url:
        problem = await problem_with(parse_url(url))
    assert isinstance(problem, RelayRefused)
    assert (problem.status, problem.detail, problem.retry_after_s) == (503, "Full", 7)


@pytest.mark.parametrize("faithful", [True, False])
async def test_refused_tcp_connection_raises(faithful: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    problem = await problem_with(Endpoint("127.0.0.1", port, tls=False), faithful=faithful)
    assert isinstance(problem, RelayUnreachable)
    assert str(problem) == f"cannot connect to 127.0.0.1 port {port} (Connection refused)"


async def test_unknown_host_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_nothing(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", find_nothing)
    assert isinstance(await problem_with(Endpoint("nowhere.invalid", 80, tls=False)), HostNotFound)


async def test_missing_tls_raises() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad\r\n\r\n")
        await stream.receive_some()

    context = ssl.create_default_context()
    async with open_server(serve) as url:
        endpoint = Endpoint("127.0.0.1", parse_url(url).port, tls=True)
        problem = await problem_with(endpoint, ssl_context=context)
    assert isinstance(problem, RelayUnreachable), problem
    assert "no TLS" in str(problem)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.1 429 No\r\n\r\n", RelayRefused),
        (b"?", RelayUnreachable),
    ],
)
async def test_registration(answer: bytes, refused: type[Exception] | None) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(answer)) as url:

            async def ask() -> None:
                await register(
                    parse_url(url), device_id="BRW-0000ABCD", key="k" * 43, token="t" * 32, ssl_context=None
                )

            if refused is None:
                await ask()
            else:
                with pytest.raises(refused):
                    await ask()


async def test_slow_relay_makes_frames_wait_and_drops_the_newest() -> None:
    read = trio.Event()
    received = bytearray()
    enough = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        # The first message arrives together with the answer.
        await stream.send_all(
            b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + accept_value(key).encode()
            + b"\r\n\r\n"
            + frame(TEXT, b"{}", mask=None)
        )
        await read.wait()
        while data := await stream.receive_some():
            received.extend(data)
            if received.endswith(b"the end"):
                enough.set()

    async def use(connection: FirmwareConnection) -> None:
        frames: list[Frame] = []
        assert await connection.receive(frames.append)
        assert [found.payload for found in frames] == [b"{}"]
        sent = 0
        while not connection.dropped:
            connection.send(TEXT, b"x" * 60_000)
            sent += 1
            assert sent < 5000
        assert len(connection._waiting) >= MOST_WAITING
        read.set()
        await until(lambda: not connection._waiting)
        connection.send(TEXT, b"z" * 1400 + b"the end")
        await enough.wait()
        # All frames are complete, with 8 bytes of header each: only whole frames were dropped.
        assert len(received) == (sent - 1) * 60_008 + 1407 + 8

    with trio.fail_after(DEADLINE_S):
        async with open_server(serve) as url:
            await connect(parse_url(url), use)
