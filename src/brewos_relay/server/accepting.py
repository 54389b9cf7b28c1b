"""Accept connections at a listening socket, and go on whatever happens to them."""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

log = logging.getLogger(__name__)

_ACCEPTS_PER_PASS: Final = 64
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S: Final = 0.1

Welcome = Callable[[socket.socket, str, int], Awaitable[None]]
"""Called in a task of its own for each connection: its socket, and the peer's address and port."""


async def accept_connections(listening: socket.socket, nursery: trio.Nursery, welcome: Welcome) -> None:
    """Accept connections until cancelled; each is welcomed in a task of the nursery."""
    while True:
        await trio.lowlevel.wait_readable(listening)
        for _ in range(_ACCEPTS_PER_PASS):
            try:
                accepted, peer = listening.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    log.warning("cannot accept connections: %s", error.strerror)
                    await trio.sleep(_PAUSE_S)
                    break
                continue  # that peer had gone before it was accepted
            nursery.start_soon(welcome, accepted, peer[0].partition("%")[0], peer[1])
