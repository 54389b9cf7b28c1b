"""A TCP proxy in front of a Redis server, which delays, stops and cuts connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class BusProxy:
    """Forwards connections to a port of this machine. Its attributes apply to all of them at once."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
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
                server = await trio.open_tcp_stream("127.0.0.1", self._target_port)
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
        try:
            while data := await source.receive_some(65536):
                await trio.sleep(self.delay_s)
                await self._heals.wait()
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def open_bus_proxy(target_port: int) -> AsyncIterator[BusProxy]:
    """Run a proxy until the block is left."""
    proxy = BusProxy(target_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
