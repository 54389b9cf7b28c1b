"""Echo server: the relay's WebSocket codec, transport, poller and connection with nothing on top.

Run as a program it prints one line, `listening on HOST:PORT`, and serves until it is stopped.
"""

import argparse
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from brewos_relay.core.peer import STAYS, PeerEnd
from brewos_relay.delivery import Delivery
from brewos_relay.errors import PeerGone
from brewos_relay.messages import Message
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.wire.connection import WebSocketConnection, client_connection
from brewos_relay.wire.handshake import HEAD_END, Refusal, accept_upgrade, parse_head
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.polling import open_poller
from brewos_relay.wire.transport import Transport

log = logging.getLogger(__name__)

# The cases test the protocol: none may reach a limit.
LIMITS: Final = ServerLimits(client_message_bytes=16 * 1024 * 1024, outbox_bytes=64 * 1024 * 1024)


async def serve(listening: socket.socket, *, poller: Poller) -> None:
    """Accept connections on a non-blocking socket and echo their messages, until cancelled.

    **Owns:** one nursery, with a task for each connection.
    """
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listening)
            try:
                accepted, _address = listening.accept()
            except BlockingIOError:
                continue  # the peer disconnected before it was accepted
            nursery.start_soon(_welcome, accepted, poller)


async def _welcome(accepted: socket.socket, poller: Poller) -> None:
    """Serve one connection to its end; an error ends only that connection."""
    accepted.setblocking(False)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = Transport(accepted, outbox_limit_bytes=LIMITS.outbox_bytes)
    try:
        with trio.fail_after(LIMITS.request_head_s):
            initial = await _shake_hands(transport)
        await _echo(client_connection(transport, poller=poller, limits=LIMITS, initial=initial))
    except Refusal as refusal:
        transport.write(refusal.encode())
    except Exception:
        log.exception("a connection failed")
    finally:
        transport.close()


async def _shake_hands(transport: Transport) -> bytes:
    """Answer the opening handshake; return the bytes after it. Raises Refusal or PeerGone."""
    received = b""
    while HEAD_END not in received:
        await transport.wait_readable()
        data = transport.read()
        if data == b"":
            raise PeerGone("the peer left in the middle of its request")
        received += data or b""
        if len(received) > LIMITS.request_head_bytes:
            raise Refusal(431, f"the request head is larger than {LIMITS.request_head_bytes} bytes")
    head, _, rest = received.partition(HEAD_END)
    transport.write(accept_upgrade(parse_head(head)))
    return rest


class _Tasks:
    """The tasks of a connection, and its end."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.ended = trio.Event()

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(async_fn, *args)

    def end_peer(self, _end: PeerEnd) -> None:
        self.ended.set()


async def _echo(connection: WebSocketConnection) -> None:
    """Run a connection that echoes its messages.

    **Owns:** the connection, and the nursery of its writer.
    """

    def receive(messages: Sequence[Message]) -> float:
        if messages and not connection.deliver(Delivery(messages)):
            log.error("%d messages were left out of the echo", len(messages))
        return 0.0

    async with trio.open_nursery() as nursery:
        try:
            tasks = _Tasks(nursery)
            if await connection.run(tasks, receive) is STAYS:
                await tasks.ended.wait()
        finally:
            await connection.aclose()


async def _main(*, host: str, port: int) -> None:
    with socket.create_server((host, port)) as listening:
        listening.setblocking(False)
        bound_host, bound_port = listening.getsockname()[:2]
        print(f"listening on {bound_host}:{bound_port}", flush=True)
        async with open_poller() as poller:
            await serve(listening, poller=poller)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo WebSocket messages through the relay's wire layer.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0, the default, selects a free port")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="echo server: %(levelname)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C
    trio.run(lambda: _main(host=arguments.host, port=arguments.port))
