"""Poller: one task that notices which of all sockets have something to read.

Waiting for each socket in a task of its own costs a system call and a task switch for every message. Here
the sockets are registered once, and a pass over those that are readable calls their owners one after the
other, in the same task. What is called must not block; each connection's lifetime stays with a task of its
own.
"""

import logging
import select
import selectors
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from brewos_relay.core.counters import Counters

log = logging.getLogger(__name__)

OnReadable = Callable[[], None]

_READABLE_PER_PASS: Final = 128
"""How many sockets are read before everything else in the process gets its turn."""
_SAMPLE_EVERY: Final = 32
"""One pass out of so many is timed."""


class Poller:
    """Calls the owner of every watched socket that has something to read, or has come to its end.

    Made by `open_poller`, which owns the task that runs it.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters if counters is not None else Counters()
        self._epoll = select.epoll() if hasattr(select, "epoll") else _Selector()
        self._owners: dict[int, OnReadable] = {}

    def watch(self, fd: int, on_readable: OnReadable) -> None:
        """Call `on_readable` whenever `fd` is readable; it reads once, and is called again for the rest."""
        self._epoll.register(fd, select.POLLIN)
        self._owners[fd] = on_readable

    def unwatch(self, fd: int) -> None:
        """Stop calling for `fd`; harmless if it is not watched."""
        if self._owners.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Look and call, for ever."""
        owners = self._owners
        poll = self._epoll.poll
        epoll_fd = self._epoll.fileno()
        until_sample = 1
        while True:
            await trio.lowlevel.wait_readable(epoll_fd)
            until_sample -= 1
            if not until_sample:
                until_sample = _SAMPLE_EVERY
                self._call_timed(poll(0, _READABLE_PER_PASS))
                continue
            for fd, _event in poll(0, _READABLE_PER_PASS):
                on_readable = owners.get(fd)  # an earlier owner of this pass may have ended this one
                if on_readable is not None:
                    on_readable()

    def _call_timed(self, readable: list[tuple[int, int]]) -> None:
        """Do one pass, and note how long the messages of each socket waited and took, together."""
        counters = self._counters
        began_at_s = time.perf_counter()
        for fd, _event in readable:
            on_readable = self._owners.get(fd)
            if on_readable is None:
                continue
            before = counters.received_from_devices + counters.received_from_clients
            on_readable()
            if counters.received_from_devices + counters.received_from_clients != before:
                counters.latency.observe(time.perf_counter() - began_at_s)

    def close(self) -> None:
        """Give the system's resources back."""
        self._epoll.close()


class _Selector:
    """What `select.epoll` does, for systems without it."""

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


@asynccontextmanager
async def open_poller(counters: Counters | None = None) -> AsyncIterator[Poller]:
    """Open a poller, and run it until the block is left. `counters` is where it notes how long things take.

    **Owns:** the one task that reads.
    """
    poller = Poller(counters)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            yield poller
            nursery.cancel_scope.cancel()
    finally:
        poller.close()
