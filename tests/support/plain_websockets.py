"""A server of the `websockets` library that replaces the relay and is controlled by the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import trio
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.trio.server import Server, ServerConnection, serve


class Peer:
    """A peer that has connected."""

    def __init__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.connection = connection
        self.parameters = parameters_of(connection.request.path)

    async def send(self, **content: Any) -> None:
        """Send a message as JSON text."""
        await self.connection.send(msgspec.json.encode(content).decode())

    async def receive(self) -> dict[str, Any]:
        """Wait for the next message. Raises ConnectionClosed."""
        payload = await self.connection.recv()
        codec = msgspec.json if isinstance(payload, str) else msgspec.msgpack
        content: dict[str, Any] = codec.decode(payload, type=dict[str, Any])
        return content

    async def receive_kind(self, kind: str) -> dict[str, Any]:
        """Wait for the next message of this kind, past others."""
        while (content := await self.receive())["type"] != kind:
            pass
        return content

    async def greet(self, **more: Any) -> None:
        """Send the relay's first message."""
        await self.send(type="connected", timestamp=1_700_000_000_000, **more)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with a close frame."""
        await self.connection.aclose(code, reason)

    async def cut(self) -> None:
        """Drop the connection without a close frame."""
        await trio.aclose_forcefully(self.connection.stream)


class PlainServer:
    """The server. Each of `refusals` answers one of the next requests."""

    def __init__(self, accepted: trio.MemoryReceiveChannel[Peer]) -> None:
        self.url = ""
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.asked: list[dict[str, str]] = []
        self._accepted = accepted

    async def accept(self) -> Peer:
        """Wait for the next connection."""
        return await self._accepted.receive()

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append(parameters_of(request.path))
        if not self.refusals:
            return None
        status, headers = self.refusals.pop(0)
        body = b'{"error":"not now"}'
        given = {"Content-Length": str(len(body)), "Connection": "close", **headers}
        return Response(status, HTTPStatus(status).phrase, Headers(given), body)


@asynccontextmanager
async def open_plain_server() -> AsyncIterator[PlainServer]:
    """Run a server on a free port of this machine.

    **Owns:** the task that accepts and one task for each connection. **Ends when:** the block is left.
    """
    send, receive = trio.open_memory_channel[Peer](1000)
    server = PlainServer(receive)

    async def take(connection: ServerConnection) -> None:
        await send.send(Peer(connection))
        with suppress(ConnectionClosed):
            await connection.wait_closed()

    async with trio.open_nursery() as nursery:
        run = partial(
            serve,
            take,
            0,
            host="127.0.0.1",
            process_request=server.answer,
            ping_interval=None,
            close_timeout=0.2,
        )
        started: Server = await nursery.start(run)
        server.url = f"http://127.0.0.1:{started.listeners[0].socket.getsockname()[1]}"
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


def parameters_of(path: str) -> dict[str, str]:
    """Give the path as `path`, and the parameters of the query."""
    parts = urlsplit(path)
    return {"path": parts.path, **{key: values[-1] for key, values in parse_qs(parts.query).items()}}
