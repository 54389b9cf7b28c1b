"""Accept connections at listening sockets, and go on whatever happens to them."""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import trio

from brewos_relay.core.limits import Limits
from brewos_relay.errors import PeerGone
from brewos_relay.server.arrival import Arrival

log = logging.getLogger(__name__)

_ACCEPTS_PER_PASS: Final = 64
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S: Final = 0.1

Answer = Callable[[Arrival], Awaitable[None]]


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
        for listening in sockets:
            nursery.start_soon(_accept, listening, nursery, welcome)


async def _accept(
    listening: socket.socket,
    nursery: trio.Nursery,
    welcome: Callable[[socket.socket, str, int], Awaitable[None]],
) -> None:
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


async def _welcome(
    answer: Answer, limits: Limits, failure: str, accepted: socket.socket, address: str, port: int
) -> None:
    arrival = Arrival(accepted, address, port, limits=limits)
    try:
        await answer(arrival)
    except PeerGone:
        pass  # before it had asked for anything
    except Exception:
        log.exception(failure)
    finally:
        arrival.close()
