import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from brewos_relay.core.limits import Limits
from brewos_relay.server.metrics_port import MetricsPort
from support.wire_client import Response, WireClient

BODY = b"up 1\n" * 100_000
"""More than a socket takes at once."""


@asynccontextmanager
async def open_port(
    *, token: str = "", render: Callable[[], bytes] = lambda: BODY
) -> AsyncIterator[tuple[str, int]]:
    with trio.fail_after(10), socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with trio.open_nursery() as nursery:
            limits = Limits(close_s=0.2, request_head_s=0.5, outbox_bytes=1000, lag_bytes=1000)
            port = MetricsPort([listening], render=render, token=token, limits=limits)
            nursery.start_soon(port.run)
            yield listening.getsockname()
            nursery.cancel_scope.cancel()


async def ask(address: tuple[str, int], line: str = "GET /metrics", *headers: str) -> Response:
    client = await WireClient.connect(address)
    try:
        head = "\r\n".join([f"{line} HTTP/1.1", "Host: a", *headers])
        return await client.ask(f"{head}\r\n\r\n".encode())
    finally:
        client.abort()


async def test_metrics_are_given_to_whoever_comes_here() -> None:
    async with open_port() as address:
        response = await ask(address)
    assert (response.status, response.body) == (200, BODY)
    assert response.header("content-type") == ["text/plain; version=0.0.4; charset=utf-8"]


@pytest.mark.parametrize(("line", "status"), [("GET /", 404), ("POST /metrics", 405), ("get /metrics", 400)])
async def test_there_is_nothing_else(line: str, status: int) -> None:
    async with open_port() as address:
        assert (await ask(address, line)).status == status


async def test_a_head_has_the_length_and_no_body() -> None:
    async with open_port() as address:
        client = await WireClient.connect(address)
        await client.send(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, body = (await client.read_to_end()).partition(b"\r\n\r\n")
        client.abort()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: %d\r\n" % len(BODY) in head
    assert body == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"404"),
        (b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"401"),
        (b"\r\nHEAD /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"HEAD /" + b"a" * 9000, b"431"),
        (b"HEAD / HTTP/1.1\r\n", b"408"),
    ],
)
async def test_no_refusal_of_a_head_has_a_body(sent: bytes, status: bytes) -> None:
    async with open_port(token="s3cret") as address:
        client = await WireClient.connect(address)
        await client.send(sent)
        head, end, body = (await client.read_to_end()).partition(b"\r\n\r\n")
        client.abort()
    assert (head.split(b" ")[1], end, body) == (status, b"\r\n\r\n", b"")


async def test_options_tell_what_can_be_asked_for() -> None:
    async with open_port() as address:
        response = await ask(address, "OPTIONS *")
    assert (response.status, response.header("allow")) == (200, ["GET, HEAD"])


@pytest.mark.parametrize(
    ("header", "status"),
    [("X: y", 401), ("Authorization: Bearer wrong", 401), ("Authorization: Bearer s3cret", 200)],
)
async def test_a_token_holds_here_too(header: str, status: int) -> None:
    async with open_port(token="s3cret") as address:
        assert (await ask(address, "GET /metrics", header)).status == status


async def test_a_defect_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    async with open_port(render=fail) as address:
        for _ in range(2):
            client = await WireClient.connect(address)
            await client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await client.read_to_end() == b""
            client.abort()
    assert caplog.text.count("metrics could not be given") == 2


async def test_whoever_leaves_at_once_harms_nobody() -> None:
    async with open_port() as address:
        (await WireClient.connect(address)).abort()
        assert (await ask(address)).status == 200
