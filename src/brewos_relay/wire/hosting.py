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
from pathlib import Path
from typing import Final, TypeVar

import trio

from brewos_relay.core.pauses import RunningClock
from brewos_relay.wire.poller import PAUSE_S, PolledConnection, Poller

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_WAIT_S: Final = 1.0
"""How long Trio sleeps at most, as a turn of the poller may set a deadline before the next one."""
_BUSY_TURNS: Final = 4
"""How many turns of Trio without a wait the sockets are not read."""
_OPEN_FILES: Final = Path("/proc/self/fdinfo")


class Host(RunningClock):
    """A clock that runs the turns of a poller while Trio sleeps; `serve` says which one, and owns that."""

    __slots__ = ("_failed", "_poller", "has_waited", "has_work", "is_taken")

    def __init__(self) -> None:
        super().__init__()
        self._poller: Poller | None = None
        self._failed = trio.Event()
        self.has_work = False
        """Whether Trio has something to do."""
        self.has_waited = False
        """Whether the clock has waited in this turn of Trio."""
        self.is_taken = False
        """Whether a poller uses this clock, or is going to."""

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Read sockets until Trio has something to do. Trio asks this if no task can run."""
        if self._poller is not None:
            deadline = min(deadline, self.current_time() + _LONGEST_WAIT_S)
        sleep_s = super().deadline_to_sleep_time(deadline)
        if self._poller is None or sleep_s <= 0:
            return sleep_s
        self.has_waited, self.has_work = True, False
        while sleep_s > 0:
            self.run_turn(sleep_s)
            if self.has_work:
                return 0.0
            sleep_s = super().deadline_to_sleep_time(deadline)
        return sleep_s

    def run_turn(self, wait_s: float) -> None:
        """Run a turn of the poller, if there is one; its first pass waits for up to `wait_s`."""
        poller = self._poller
        if poller is None:
            return
        try:
            poller.run_turn(wait_s)
        except Exception:
            with suppress(Exception):
                log.exception("the sockets could not be polled; trying again")
            self._poller = None
            self._failed.set()

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

    __slots__ = ("_busy_turns", "_host")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._busy_turns = 0  # since the clock was asked

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Let Trio go on; see `trio.abc.Instrument`."""
        self._host.has_work = True

    def after_io_wait(self, timeout: float) -> None:
        """Run a turn of the poller if the clock was not asked for long; see `trio.abc.Instrument`."""
        self._busy_turns += 1
        host = self._host
        if host.has_waited:
            host.has_waited = False
            self._busy_turns = 0
        elif self._busy_turns == _BUSY_TURNS:
            self._busy_turns = 0
            host.run_turn(0)


async def _find_epoll_of_trio() -> int | None:
    """Find the epoll object in which Trio waits; None if the system does not tell.

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
