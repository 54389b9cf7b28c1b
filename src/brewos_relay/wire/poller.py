"""Poller: one task that reads all WebSockets.

A task for each socket would cost a system call and a task switch for every message. Here the sockets are
registered once. A pass has three steps: it reads every readable socket, lets its connection process the
bytes, and sends the answers. A connection must not block. The task of its session owns it meanwhile.
"""

import logging
import select
import selectors
import time
from contextlib import suppress
from typing import Final

import trio

from brewos_relay.compiling import mypyc_attr
from brewos_relay.core.counters import Counters
from brewos_relay.wire.transport import WriteBatch

log = logging.getLogger(__name__)


@mypyc_attr(allow_interpreted_subclasses=True)
class PolledConnection:
    """A connection whose socket the poller reads.

    It is a class and no protocol, because the compiled poller calls methods of a class directly. They raise
    unless a class defines them: a compiled build does not check abstract methods.
    """

    __slots__ = ()

    def read(self) -> bytes | None:
        """Read once; return None if there is nothing to read, and empty bytes at the end."""
        raise NotImplementedError

    def take(self, data: bytes) -> None:
        """Process bytes that were read."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """End the connection, because some bytes were lost."""
        raise NotImplementedError


READABLE_PER_PASS: Final = 64
_READABLE_PER_TURN: Final = 128
"""How many sockets are read before other tasks get their turn."""
WORTH_ANOTHER_LOOK: Final = 8
"""After a pass over this many sockets, others are readable by now: polling again costs less than a turn of
all tasks."""
_SAMPLE_EVERY: Final = 32
"""One pass out of this many is timed."""
PAUSE_S: Final = 0.1
"""How long the poller waits after a failure of its own before it tries again."""


class Poller:
    """Reads every watched socket that has data or has ended, and calls its connection.

    Made by `wire.polling.open_poller`, which owns the task that runs it.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters if counters is not None else Counters()
        self._epoll = select.epoll() if hasattr(select, "epoll") else _Selector()
        self._connections: dict[int, PolledConnection] = {}
        self._until_sample = 1
        self.write_batch = WriteBatch()
        """Holds the writes of its transports until the end of a pass."""

    def watch(self, fd: int, connection: PolledConnection) -> None:
        """Read from `fd` whenever it is readable, and pass the bytes to its connection."""
        self._epoll.register(fd, select.POLLIN)
        self._connections[fd] = connection

    def unwatch(self, fd: int) -> None:
        """Stop reading from `fd`, and drop what this pass has read of it. It need not be watched."""
        if self._connections.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Poll until cancelled. After a failure of the poller itself, such as no memory, try again."""
        while True:
            try:
                await self._run()
            except Exception:
                with suppress(Exception):
                    log.exception("the sockets could not be polled; trying again")
                await trio.sleep(PAUSE_S)

    async def _run(self) -> None:
        epoll_fd = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(epoll_fd)
            self.run_turn(0)

    def run_turn(self, wait_s: float, worth_another_look: int = WORTH_ANOTHER_LOOK) -> int:
        """Do passes until few sockets are readable, or others should get their turn.

        The first one waits for up to `wait_s` until a socket is readable. Return how many were.
        """
        poll = self._epoll.poll
        left = _READABLE_PER_TURN
        while left > 0:
            readable = poll(wait_s, min(left, READABLE_PER_PASS))
            self._until_sample -= 1
            if self._until_sample:
                self._run_pass(readable)
            else:
                self._until_sample = _SAMPLE_EVERY
                self._run_timed_pass(readable)
            left -= len(readable)
            if len(readable) < worth_another_look:
                break
            wait_s = 0.0
        return _READABLE_PER_TURN - left

    def _run_pass(self, readable: list[tuple[int, int]]) -> None:
        """Do one pass: one kind of work for all sockets at a time, which keeps its code in the caches."""
        connections = self._connections
        received: list[tuple[int, PolledConnection, bytes]] = []
        for fd, _event in readable:
            connection = connections[fd]
            try:
                data = connection.read()
                if data is not None:
                    received.append((fd, connection, data))
            except Exception as error:  # including MemoryError: the others go on
                _fail(connection, error)
        batch = self.write_batch
        batch.holding = True  # as its block does, with fewer calls
        try:
            for fd, connection, data in received:
                if connections.get(fd) is connection:  # an earlier one may have ended this connection
                    try:
                        connection.take(data)
                    except Exception as error:
                        _fail(connection, error)
        finally:
            batch.release()

    def _run_timed_pass(self, readable: list[tuple[int, int]]) -> None:
        """Do one pass, and measure how long its messages took together."""
        counters = self._counters
        began_at_s = time.perf_counter()
        before = counters.received_from_devices + counters.received_from_clients
        self._run_pass(readable)
        came = counters.received_from_devices + counters.received_from_clients - before
        if came:
            counters.latency.observe(time.perf_counter() - began_at_s, came)

    def close(self) -> None:
        """Close the epoll object."""
        self._epoll.close()


def _fail(connection: PolledConnection, error: Exception) -> None:
    """End a connection that failed. If even that fails, its next read ends it."""
    with suppress(Exception):
        connection.fail(error)


class _Selector:
    """A replacement for `select.epoll` on systems without it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, _events: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout_s: float, most: int) -> list[tuple[int, int]]:
        return [(key.fd, select.POLLIN) for key, _ in self._selector.select(timeout_s)[:most]]

    def fileno(self) -> int:
        return self._selector.fileno()

    def close(self) -> None:
        self._selector.close()
