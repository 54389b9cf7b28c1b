"""run_hosted: a Trio run that reads the WebSockets while it waits.

In a usual run the poller is a task. For each message that wakes the process up, Trio waits for the poller's
sockets, runs a turn of its scheduler, and registers for the next wait. Here, when Trio asks its clock how
long to sleep, the clock waits instead: for the poller's sockets, for Trio's own, and for the next deadline.
Trio goes on as soon as one of its tasks has something to do.
"""

import logging
import os
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from pathlib import Path
from time import sleep
from typing import Final, TypeVar

import trio

from brewos_relay.core.pauses import RunningClock
from brewos_relay.wire.poller import (
    PAUSE_S,
    READABLE_PER_PASS,
    WORTH_ANOTHER_LOOK,
    PolledConnection,
    Poller,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_WAIT_S: Final = 1.0
"""How long Trio sleeps at most, as a turn of the poller may set a deadline before the next one."""
_OPEN_FILES: Final = Path("/proc/self/fdinfo")

_GATHER_S: Final = 0.0001
"""How long messages may gather. The system adds about as much."""
_QUICK_S: Final = 0.0001
_SMALL_TURNS: Final = 16
"""After this many turns with few sockets, each within `_QUICK_S` of the one before, messages may gather."""
_MOST_SMALL_TURNS: Final = 1024
"""The limit of that number. Each pause that gains nothing doubles it."""
_GATHERED: Final = 4
"""A turn with fewer sockets was not worth the wait."""


class Gathering:
    """Tells whether to wait before the next turn, so that it finds more messages.

    Under load, small turns follow each other closely. Each has a wait of its own, and each socket brings its
    newest message only. If messages gather for a moment, turns become fewer, and the messages of a peer share
    a read and a write.
    """

    __slots__ = ("_needed_turns", "_small_turns", "_turned_at", "is_on")

    def __init__(self) -> None:
        self.is_on = False
        """Whether messages should gather before the next turn."""
        self._small_turns = 0  # that have followed each other closely
        self._needed_turns = _SMALL_TURNS  # of them, until messages may gather
        self._turned_at = -inf

    def count_turn(self, sockets: int, now: float) -> None:
        """Count a turn. It began to wait at `now`, and `sockets` is the number of sockets that it read."""
        if self.is_on:
            self.is_on = sockets >= _GATHERED
            needed_turns = _SMALL_TURNS if self.is_on else 2 * self._needed_turns
            self._needed_turns = min(needed_turns, _MOST_SMALL_TURNS)
        elif sockets < WORTH_ANOTHER_LOOK and now - self._turned_at < _QUICK_S:
            self._small_turns += 1
            if self._small_turns >= self._needed_turns:
                self.is_on = True
                self._small_turns = 0
        else:
            self._small_turns = 0
        self._turned_at = now


class Host(RunningClock):
    """A clock that runs the turns of a poller while Trio sleeps; `serve` says which one, and owns that."""

    __slots__ = ("_failed", "_gathering", "_poller", "has_waited", "has_work", "is_taken")

    def __init__(self) -> None:
        super().__init__()
        self._poller: Poller | None = None
        self._failed = trio.Event()
        self._gathering = Gathering()
        self.has_work = False
        """Whether Trio has something to do."""
        self.has_waited = False
        """Whether the clock has waited in this turn of Trio."""
        self.is_taken = False
        """Whether a poller uses this clock, or is going to."""

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Read sockets until Trio has something to do. Trio asks this if no task can run."""
        now = self.current_time()
        if self._poller is not None:
            deadline = min(deadline, now + _LONGEST_WAIT_S)
        sleep_s = self.sleep_time(deadline, now)
        if self._poller is None or sleep_s <= 0:
            return sleep_s
        self.has_waited, self.has_work = True, False
        while sleep_s > 0:
            sockets = self.run_turn(sleep_s)
            if self.has_work:
                return 0.0
            self._gathering.count_turn(sockets, now)
            if self._gathering.is_on:
                sleep(_GATHER_S)
            now = self.current_time()
            sleep_s = self.sleep_time(deadline, now)
        return sleep_s

    def run_turn(self, wait_s: float) -> int:
        """Run a turn of the poller, if there is one; its first pass waits for up to `wait_s`.

        Return how many sockets were readable.
        """
        poller = self._poller
        if poller is None:
            return 0
        try:
            return poller.run_turn(wait_s, READABLE_PER_PASS if self._gathering.is_on else WORTH_ANOTHER_LOOK)
        except Exception:
            with suppress(Exception):
                log.exception("the sockets could not be polled; trying again")
            self._poller = None
            self._failed.set()
            return 0

    async def serve(self, poller: Poller) -> None:
        """Run the turns of this poller until cancelled. The caller has set `is_taken`.

        After a failure, try again. Where Trio's sockets cannot be found, the poller runs as a task.
        """
        epoll_fd = await _find_epoll_of_trio()
        if epoll_fd is None:
            await poller.run()
        else:
            await self._serve(poller, epoll_fd)

    async def _serve(self, poller: Poller, epoll_fd: int) -> None:
        poller.watch(epoll_fd, _SocketsOfTrio(self))
        try:
            while True:
                self._failed = trio.Event()
                self._poller = poller
                await self._failed.wait()
                await trio.sleep(PAUSE_S)
        finally:
            self._poller = None
            poller.unwatch(epoll_fd)


class _SocketsOfTrio(PolledConnection):
    """The sockets that Trio itself waits for, as the poller sees them: readable if one of them is."""

    __slots__ = ("_host",)

    def __init__(self, host: Host) -> None:
        self._host = host

    def read(self) -> bytes | None:
        """Let Trio go on."""
        self._host.has_work = True
        return None


class _Turns(trio.abc.Instrument):
    """Tells a host of tasks that can run, and gives the poller its turns while there are always some."""

    __slots__ = ("_host",)

    def __init__(self, host: Host) -> None:
        self._host = host

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Let Trio go on; see `trio.abc.Instrument`."""
        self._host.has_work = True

    def after_io_wait(self, timeout: float) -> None:
        """Run a turn of the poller if the clock was not asked; see `trio.abc.Instrument`.

        Tasks with work for many devices yield from time to time. Messages that came meanwhile are read then.
        """
        host = self._host
        if host.has_waited:
            host.has_waited = False
        else:
            host.run_turn(0)


async def _find_epoll_of_trio() -> int | None:
    """Find the epoll object of Trio; None if the system does not tell.

    Linux lists what each epoll object waits for, so Trio is made to wait for a new descriptor.

    **Owns:** the task that waits for it.
    """
    if not _OPEN_FILES.exists():
        return None
    probe, end = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, probe)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            found = _find_epoll_with(probe)
            nursery.cancel_scope.cancel()
    finally:
        os.close(probe)
        os.close(end)
    return found


def _find_epoll_with(fd: int) -> int | None:
    waits_for = re.compile(rf"^tfd: +{fd} ", re.MULTILINE)
    for file in _OPEN_FILES.iterdir():
        with suppress(OSError):  # it was closed meanwhile, such as that of this loop
            if waits_for.search(file.read_text()):
                return int(file.name)
    return None


def free_host() -> Host | None:
    """Return the host of this Trio run if there is one, and no poller uses it."""
    clock = trio.lowlevel.current_clock()
    return clock if isinstance(clock, Host) and not clock.is_taken else None


def run_hosted(async_fn: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run `async_fn(*args)` as `trio.run` does, with a host for its poller."""
    host = Host()
    return trio.run(async_fn, *args, clock=host, instruments=[_Turns(host)])
