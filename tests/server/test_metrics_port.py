"""The metrics port."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from brewos_relay.server.metrics_port import MetricsPort
from brewos_relay.settings.server_limits import ServerLimits
from support.wire_client import Response, WireClient

BODY = b"up 1\n" * 100_000
"""More than a socket buffers."""


@asynccontextmanager
async def open_port(*, token: str = "", text: bytes | None = BODY) -> AsyncIterator[tuple[str, int]]:
    with trio.fail_after(10), socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with trio.open_nursery() as nursery:
            limits = ServerLimits(close_s=0.2, request_head_s=0.5, outbox_bytes=1000, lag_bytes=1000)

            async def render() -> bytes:
                if text is None:
                    raise ZeroDivisionError
                return text

            port = MetricsPort([listening], render=render, token=token, limits=limits)
            nursery.start_soon(port.run)
            yield listening.getsockname()
            nursery.cancel_scope.cancel()


async def ask_metrics(address: tuple[str, int], line: str = "GET /metrics", *headers: str) -> Response:
    client = await WireClient.connect(address)
    try:
        head = "\r\n".join([f"{line} HTTP/1.1", "Host: a", *headers])
        return await client.ask(f"{head}\r\n\r\n".encode())
    finally:
        client.abort()


async def test_the_metrics_port_needs_no_token_by_default() -> None:
    async with open_port() as address:
        response = await ask_metrics(address)
    assert (response.status, response.body) == (200, BODY)
    assert response.header("content-type") == ["text/plain; version=0.0.4; charset=utf-8"]


@pytest.mark.parametrize(("line", "status"), [("GET /", 404), ("POST /metrics", 405), ("get /metrics", 400)])
async def test_other_requests_at_the_metrics_port_are_refused(line: str, status: int) -> None:
    async with open_port() as address:
        assert (await ask_metrics(address, line)).status == status


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
async def test_refusals_of_head_at_the_metrics_port_have_no_body(sent: bytes, status: bytes) -> None:
    async with open_port(token="s3cret") as address:
        client = await WireClient.connect(address)
        await client.send(sent)
        head, end, body = (await client.read_to_end()).partition(b"\r\n\r\n")
        client.abort()
    assert (head.split(b" ")[1], end, body) == (status, b"\r\n\r\n", b"")


async def test_options_lists_the_methods() -> None:
    async with open_port() as address:
        response = await ask_metrics(address, "OPTIONS *")
    assert (response.status, response.header("allow")) == (200, ["GET, HEAD"])


@pytest.mark.parametrize(
    ("header", "status"),
    [("X: y", 401), ("Authorization: Bearer wrong", 401), ("Authorization: Bearer s3cret", 200)],
)
async def test_the_metrics_port_checks_a_token(header: str, status: int) -> None:
    async with open_port(token="s3cret") as address:
        assert (await ask_metrics(address, "GET /metrics", header)).status == status


async def test_a_defect_at_the_metrics_port_ends_one_connection_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_port(text=None) as address:
        for _ in range(2):
            client = await WireClient.connect(address)
            await client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await client.read_to_end() == b""
            client.abort()
    assert caplog.text.count("a connection to the metrics port failed") == 2


async def test_peers_that_leave_at_once_do_no_harm() -> None:
    async with open_port() as address:
        (await WireClient.connect(address)).abort()
        assert (await ask_metrics(address)).status == 200
