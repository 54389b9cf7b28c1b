"""Accept connections at listening sockets, and go on whatever happens to them."""

import errno
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from brewos_relay.core.limits import Limits
from brewos_relay.errors import PeerGone
from brewos_relay.server.arrival import IncomingConnection

log = logging.getLogger(__name__)

_ACCEPTS_PER_PASS: Final = 64
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
"""ENOSPC is that of epoll: no more sockets can be watched."""
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0
_SAY_EVERY_S: Final = 10.0

Answer = Callable[[IncomingConnection], Awaitable[None]]


async def accept_connections(
    sockets: Iterable[socket.socket], answer: Answer, *, limits: Limits, failure: str
) -> None:
    """Accept connections until cancelled, and answer each; it is closed after that unless it was released.

    Whatever goes wrong ends that connection only; `failure` is what the log says of it.

    **Owns:** an accepting task for each listening socket, and one for each connection until it is answered.
    **Ends when:** cancelled.
    """
    async with trio.open_nursery() as nursery:
        welcome = partial(_welcome, answer, limits, failure)
        backoff = _AcceptBackoff()
        for listening in sockets:
            nursery.start_soon(_accept, listening, nursery, welcome, backoff)


class _AcceptBackoff:
    """What the listening sockets of a port do while the system has no more files or memory: wait.

    Connections wait meanwhile in the queue of the socket. The pauses grow, and the log gets a line in 10 s.
    """

    def __init__(self) -> None:
        self._pause_s = _PAUSE_S
        self._say_at = -math.inf
        self._failures = 0

    async def wait(self, error: Exception) -> None:
        """Wait before the next attempt."""
        self._failures += 1
        if trio.current_time() >= self._say_at:
            self._say_at = trio.current_time() + _SAY_EVERY_S
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            times, self._failures = self._failures, 0
            with suppress(Exception):  # there may be no memory for it
                log.warning("cannot accept connections: %s (%d times)", reason, times)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        await trio.sleep(pause_s)

    def end(self) -> None:
        """Note that a connection was accepted."""
        self._pause_s = _PAUSE_S


async def _accept(
    listening: socket.socket,
    nursery: trio.Nursery,
    welcome: Callable[[socket.socket, str, int], Awaitable[None]],
    backoff: _AcceptBackoff,
) -> None:
    while True:
        try:
            await _accept_some(listening, nursery, welcome)
            backoff.end()
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _OUT_OF_RESOURCES:
                raise
            await backoff.wait(error)


async def _accept_some(
    listening: socket.socket,
    nursery: trio.Nursery,
    welcome: Callable[[socket.socket, str, int], Awaitable[None]],
) -> None:
    """Wait for connections, and accept those that are there. Raises MemoryError, and OSError likewise."""
    await trio.lowlevel.wait_readable(listening)
    for _ in range(_ACCEPTS_PER_PASS):
        try:
            accepted, peer = listening.accept()
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                raise
            continue  # that peer had gone before it was accepted
        try:
            nursery.start_soon(welcome, accepted, peer[0].partition("%")[0], peer[1])
        except MemoryError:
            accepted.close()
            raise


async def _welcome(
    answer: Answer, limits: Limits, failure: str, accepted: socket.socket, address: str, port: int
) -> None:
    incoming: IncomingConnection | None = None
    try:
        incoming = IncomingConnection.accept(accepted, address, port, limits=limits)
        await answer(incoming)
    except PeerGone:
        pass  # before it had asked for anything
    except Exception:
        with suppress(Exception):  # there may be no memory for it
            log.exception(failure)
    finally:
        with suppress(Exception):
            (incoming or accepted).close()
