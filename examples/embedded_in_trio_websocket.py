"""The relay core inside another server, here one on trio-websocket.

The core needs a `Peer` for each connection. This program serves devices at /device/ID and apps at /app/ID,
on port 8765, without authentication.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from brewos_relay import (
    BREWOS,
    Attachment,
    Delivery,
    Limits,
    Message,
    Peer,
    Receive,
    Relay,
    Tasks,
    open_relay,
)

OUTBOX_DELIVERIES = 100
KEPT_DELIVERIES = 50
GOODBYE_S = 1.0


class TrioWebSocketPeer:
    """A `Peer` on a connection of trio-websocket."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection
        self._to_write, self._outbox = trio.open_memory_channel[Delivery | None](
            OUTBOX_DELIVERIES + KEPT_DELIVERIES
        )
        self._reading = trio.CancelScope()
        self._goodbye: tuple[int, str] | None = None

    async def run(self, tasks: Tasks, receive: Receive) -> None:
        tasks.start_soon(self._write, tasks, receive)
        with self._reading:
            try:
                while True:
                    received = await self._connection.get_message()
                    if isinstance(received, str):
                        message = Message(received.encode())
                    else:
                        message = Message(received, is_text=False)
                    await trio.sleep(receive([message]))
            except ConnectionClosed:
                pass

    async def _write(self, tasks: Tasks, receive: Receive) -> None:
        try:
            async for delivery in self._outbox:
                if delivery is None:
                    tasks.start_soon(self._ask, receive)
                    continue
                for message in delivery.messages:
                    content = message.payload.decode() if message.is_text else message.payload
                    await self._connection.send_message(content)
        except ConnectionClosed:
            self._reading.cancel()

    async def _ask(self, receive: Receive) -> None:
        try:
            await self._connection.ping()
        except ConnectionClosed:
            return
        if not self._reading.cancel_called:
            receive(())

    @property
    def backlog_bytes(self) -> int:
        return self._outbox.statistics().current_buffer_used

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        if not keep and self.backlog_bytes >= OUTBOX_DELIVERIES:
            return False
        try:
            self._to_write.send_nowait(delivery)
        except (trio.WouldBlock, trio.ClosedResourceError):
            return False
        return True

    def ping(self) -> bool:
        with suppress(trio.WouldBlock, trio.ClosedResourceError):
            self._to_write.send_nowait(None)
        return False

    def close(self, code: int, reason: str) -> None:
        if self._goodbye is None:
            self._goodbye = (code, reason)
        self._reading.cancel()

    async def aclose(self) -> None:
        self._to_write.close()
        with trio.move_on_after(GOODBYE_S, shield=True):
            await self._connection.aclose(*(self._goodbye or (1001, "the relay is shutting down")))


async def welcome(relay: Relay, request: WebSocketRequest) -> None:
    """Attach a connection to the relay, which owns it until it ends."""
    attach: Callable[[str, Peer], Attachment]
    match request.path.split("/"):
        case ["", "device", device_id] if device_id:
            attach = relay.attach_device
        case ["", "app", device_id] if device_id:
            attach = relay.attach_client
        case _:
            await request.reject(404)
            return
    connection = await request.accept()
    await attach(device_id, TrioWebSocketPeer(connection)).wait_closed()


async def serve(
    port: int,
    *,
    limits: Limits | None = None,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. trio-websocket then drops its connections at once, without a close frame."""
    async with open_relay(limits=limits, dialect=BREWOS) as relay:
        await serve_websocket(
            partial(welcome, relay), "127.0.0.1", port, ssl_context=None, task_status=task_status
        )


if __name__ == "__main__":
    trio.run(serve, 8765)
