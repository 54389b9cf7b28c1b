"""An HTTPS server inside a test, for programs that send requests to other servers."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import h11
import trio

from support.certificates import server_context, write_certificate


@dataclass
class Asked:
    """A request that arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


Answer: TypeAlias = bytes
"""The bytes of a whole answer."""


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class HttpsServer:
    """The server: its port, its requests, and what it answers. `tls` trusts its certificate, `cert_file`."""

    port: int
    tls: ssl.SSLContext
    cert_file: Path
    handle: Callable[[Asked], Awaitable[Answer]]
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    def url(self, path: str = "/", *, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"


@asynccontextmanager
async def open_https_server(
    folder: Path, handle: Callable[[Asked], Awaitable[Answer]], *, names: tuple[str, ...] = ("localhost",)
) -> AsyncIterator[HttpsServer]:
    """Open a server with a certificate for `names`.

    **Owns:** a nursery with its listener and connections.
    """
    files = write_certificate(folder, names=names)
    own = server_context(files)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = listeners[0].socket.getsockname()[1]
        server = HttpsServer(port, ssl.create_default_context(cafile=files.cert), files.cert, handle)

        async def serve(plain: trio.SocketStream) -> None:
            server.connections += 1
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
                async with trio.SSLStream(plain, own, server_side=True, https_compatible=True) as stream:
                    await _serve_one(stream, server)

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def _serve_one(stream: trio.SSLStream[trio.SocketStream], server: HttpsServer) -> None:
    http = h11.Connection(h11.SERVER)
    asked: Asked | None = None
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Request):
            headers = {name.decode(): value.decode() for name, value in event.headers}
            asked = Asked(event.method.decode(), event.target.decode(), headers)
        elif isinstance(event, h11.Data) and asked is not None:
            asked.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and asked is not None:
            server.asked.append(asked)
            await stream.send_all(await server.handle(asked))
            return
        else:
            return
