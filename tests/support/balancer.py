"""A load balancer in the test: passes each connection to the next instance that is ready."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeAlias

import trio

from support.wire_client import Ended, WireClient

Address: TypeAlias = tuple[str, int]

_CHECK_EVERY_S: Final = 0.25
_READY: Final = b"GET /readyz HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n\r\n"


class Balancer:
    """Checks which instances are ready, and passes new connections to those in turn. It reads no messages."""

    def __init__(self) -> None:
        self.address: Address = ("127.0.0.1", 0)
        self.refused = 0
        """Connections that came while no instance was ready."""
        self._instances: list[Address] = []
        self._ready: list[Address] = []
        self._turn = 0

    def add(self, instance: Address) -> None:
        """Pass connections to an instance as soon as it is ready."""
        self._instances.append(instance)

    def remove(self, instance: Address) -> None:
        """Pass no more connections to an instance. Its open connections stay."""
        self._instances.remove(instance)
        if instance in self._ready:
            self._ready.remove(instance)

    async def wait_ready(self, instance: Address) -> None:
        """Wait until an instance gets connections."""
        while instance not in self._ready:  # noqa: ASYNC110 - the check has no event
            await trio.sleep(0.02)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections until cancelled."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1000)
        self.address = listener.socket.getsockname()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_all)
            task_status.started()
            await trio.serve_listeners(self._pass_on, [listener], handler_nursery=nursery)

    async def _check_all(self) -> None:
        while True:
            for instance in list(self._instances):
                is_ready = await _is_ready(instance)
                if instance not in self._instances:  # removed meanwhile
                    continue
                if is_ready and instance not in self._ready:
                    self._ready.append(instance)
                elif not is_ready and instance in self._ready:
                    self._ready.remove(instance)
            await trio.sleep(_CHECK_EVERY_S)

    async def _pass_on(self, peer: trio.SocketStream) -> None:
        async with peer:
            for _ in range(len(self._ready)):
                if not self._ready:  # the checks have removed the last one meanwhile
                    break
                self._turn += 1
                instance = self._ready[self._turn % len(self._ready)]
                with suppress(OSError):
                    await _join(peer, await trio.open_tcp_stream(*instance))
                    return
            self.refused += 1


async def _is_ready(instance: Address) -> bool:
    with trio.move_on_after(1), suppress(OSError, Ended, trio.BrokenResourceError):
        connection = await WireClient.connect(instance)
        try:
            return (await connection.ask(_READY)).status == 200
        finally:
            connection.abort()
    return False


async def _join(peer: trio.SocketStream, server: trio.SocketStream) -> None:
    """Copy in both directions until one side ends. **Owns:** a task for each direction."""

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                await target.send_all(data)
        nursery.cancel_scope.cancel()

    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(copy, peer, server)
        nursery.start_soon(copy, server, peer)


@asynccontextmanager
async def open_balancer() -> AsyncIterator[Balancer]:
    """Run a balancer until the block is left."""
    balancer = Balancer()
    async with trio.open_nursery() as nursery:
        await nursery.start(balancer.run)
        yield balancer
        nursery.cancel_scope.cancel()
