"""The relay core inside somebody else's server, here one built on trio-websocket.

A Peer is all that the core asks for: it runs, delivers, and closes. Run this file and it serves devices at
/device/ID and apps at /app/ID, on port 8765, without any authentication.
"""

from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from brewos_relay import Delivery, Message, Receive, Relay, Tasks, open_relay

OUTBOX_MESSAGES = 100
GOODBYE_S = 1.0


class TrioWebSocketPeer:
    """A peer over a connection of trio-websocket."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection
        self._to_write, self._outbox = trio.open_memory_channel[Message](OUTBOX_MESSAGES)
        self._scope = trio.CancelScope()
        self._goodbye = (1001, "the relay is leaving")

    async def run(self, tasks: Tasks, receive: Receive) -> None:
        async with trio.open_nursery() as own:
            own.start_soon(self._write)
            with self._scope:
                try:
                    while True:
                        received = await self._connection.get_message()
                        if isinstance(received, str):
                            receive([Message(received.encode())])
                        else:
                            receive([Message(received, is_text=False)])
                except ConnectionClosed:
                    pass
            own.cancel_scope.cancel()

    async def _write(self) -> None:
        try:
            async for message in self._outbox:
                content = message.payload.decode() if message.is_text else message.payload
                await self._connection.send_message(content)
        except ConnectionClosed:
            self._scope.cancel()

    def deliver(self, delivery: Delivery) -> bool:
        try:
            for message in delivery.messages:
                self._to_write.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True

    def close(self, code: int, reason: str) -> None:
        self._goodbye = (code, reason)
        self._scope.cancel()

    async def aclose(self) -> None:
        with trio.move_on_after(GOODBYE_S, shield=True):
            await self._connection.aclose(*self._goodbye)


async def welcome(relay: Relay, request: WebSocketRequest) -> None:
    _, kind, device_id = request.path.split("/")
    connection = await request.accept()
    attach = relay.attach_device if kind == "device" else relay.attach_client
    await attach(device_id, TrioWebSocketPeer(connection)).wait_closed()


async def serve(port: int, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
    async with open_relay() as relay:
        await serve_websocket(
            partial(welcome, relay), "127.0.0.1", port, ssl_context=None, task_status=task_status
        )


if __name__ == "__main__":
    trio.run(serve, 8765)
