"""Small servers to test clients against: one speaks WebSocket, one runs a given function."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream


class Accepted:
    """A WebSocket that the server has accepted; `path` has the query in it."""

    def __init__(self, request: WebSocketRequest, connection: WebSocketConnection) -> None:
        self.path = request.path
        self.headers = {name.decode().lower(): value.decode() for name, value in request.headers}
        self.subprotocols = request.proposed_subprotocols
        self.connection = connection


@asynccontextmanager
async def open_websocket_server() -> AsyncIterator[tuple[str, trio.MemoryReceiveChannel[Accepted]]]:
    """Accept every WebSocket; gives the server's URL and the channel on which they are handed out.

    **Owns:** the task that accepts and one task for each connection. **Ends when:** the block is left.
    """
    send, receive = trio.open_memory_channel[Accepted](100)

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(ConnectionClosed):
            async with trio.open_nursery() as nursery:
                request = await wrap_server_stream(nursery, stream)
                connection = await request.accept()
                await send.send(Accepted(request, connection))

    async with open_server(serve) as url:
        yield url, receive


@asynccontextmanager
async def open_server(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Run `serve` for every TCP connection; gives the server's URL.

    **Owns:** the task that accepts and one task for each connection. **Ends when:** the block is left.
    """
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


def answering(answer: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """Make a `serve` that reads a request head, sends `answer` and closes."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                received = b""
                while b"\r\n\r\n" not in received:
                    data = await stream.receive_some()
                    if not data:
                        return
                    received += data
                await stream.send_all(answer)

    return serve
