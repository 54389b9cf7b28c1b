"""A TCP proxy in front of a Redis server, which delays, stops and cuts connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

_PIECES: Final = 1000
"""So many pieces of data may be on their way."""


class BusProxy:
    """Forwards connections to a port of this machine. Its attributes apply to all of them at once."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.delay_s = 0.0
        """How long each piece of data is held, in both directions."""
        self.refuses = False
        """Whether new connections are closed at once."""
        self._heals = trio.Event()
        self._heals.set()
        self._connections: set[trio.CancelScope] = set()

    def partition(self) -> None:
        """Forward nothing; connections stay open."""
        self._heals = trio.Event()

    def heal(self) -> None:
        """Forward again, beginning with what has waited."""
        self._heals.set()

    def cut(self) -> None:
        """Close all connections."""
        for scope in self._connections:
            scope.cancel()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections until cancelled."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            task_status.started()
            await trio.serve_listeners(self._forward, [listener], handler_nursery=nursery)

    async def _forward(self, client: trio.SocketStream) -> None:
        if self.refuses:
            await client.aclose()
            return
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                server = await trio.open_tcp_stream("127.0.0.1", self.target_port)
                async with client, server, trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, client, server, scope)
                    nursery.start_soon(self._copy, server, client, scope)
            except OSError:  # the server is down
                await client.aclose()
            finally:
                self._connections.discard(scope)

    async def _copy(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        """Forward one direction. **Owns:** a task that reads, so that a delay costs no throughput."""
        to_send, to_take = trio.open_memory_channel[tuple[float, bytes]](_PIECES)

        async def read() -> None:
            async with to_send:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while data := await source.receive_some(65536):
                        await to_send.send((trio.current_time() + self.delay_s, data))
                        await self._heals.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for due_at, data in to_take:
                    await trio.sleep_until(due_at)
                    await self._heals.wait()
                    await target.send_all(data)
            scope.cancel()


@asynccontextmanager
async def open_bus_proxy(target_port: int) -> AsyncIterator[BusProxy]:
    """Run a proxy until the block is left."""
    proxy = BusProxy(target_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
