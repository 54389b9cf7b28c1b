"""The server's process: its limits and garbage collection, systemd's notifications, unused memory."""

import ctypes
import gc
import logging
import math
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import trio

log = logging.getLogger(__name__)

_ADDRESS: Final = "NOTIFY_SOCKET"
_WATCHDOG_US: Final = "WATCHDOG_USEC"
_WATCHDOG_PID: Final = "WATCHDOG_PID"
_SIGNS_OF_LIFE: Final = 3
"""How many signs of life are sent in the time in which one is expected."""
_SWITCH_S: Final = 0.0005
"""A tenth of Python's own: during a flood of registrations, connecting took 6 ms (median) instead of 19."""
_TRIM_EVERY_S: Final = 60.0


class SystemdNotifier:
    """Whoever started this process, and what they want to be told.

    `watchdog_s` is within which time they want a sign of life, None if they want none.
    """

    def __init__(self, address: str | None = None, *, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        self._complained = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "SystemdNotifier":
        """Find whom to tell; what makes no sense is taken for nobody, since the relay runs without."""
        address = environ.get(_ADDRESS, "")
        if address[:1] not in {"/", "@"}:
            return cls()
        interval_us, process = environ.get(_WATCHDOG_US, ""), environ.get(_WATCHDOG_PID) or str(os.getpid())
        is_watched = interval_us.isdecimal() and int(interval_us) > 0 and process == str(os.getpid())
        return cls(address, watchdog_s=int(interval_us) / 1e6 if is_watched else None)

    def ready(self, status: str) -> None:
        """Say that everything is up, and in a few words what that is; also after `reloading`."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that settings are taken anew; `ready` has to follow."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self, status: str, *, within_s: float) -> None:
        """Say that the process is ending, and ask for the time that this may take.

        systemd then waits at least that long, also where `TimeoutStopSec` is shorter.
        """
        self._say("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={math.ceil(within_s * 1e6)}")

    def keepalive(self) -> None:
        """Say that the process still does its work."""
        self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if self._address is None:
            return
        # A name that begins with @ is one that no file has.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_manager:
                to_manager.setblocking(False)
                to_manager.sendto("\n".join(lines).encode(), address)
        except OSError as problem:
            if not self._complained:
                log.warning("cannot tell %s how it goes: %s", self._address, problem.strerror or problem)
            self._complained = True


@asynccontextmanager
async def open_notifier(notifier: SystemdNotifier | None = None) -> AsyncIterator[SystemdNotifier]:
    """Give signs of life for as long as the block runs, if anybody wants them.

    They come from a task among all others: once Trio's loop has stopped turning, there are none, and whoever
    waits for them can start the process anew.

    **Owns:** that task.
    """
    notifier = SystemdNotifier.from_environment() if notifier is None else notifier
    if notifier.watchdog_s is None:
        yield notifier  # with no nursery, which would wrap what the block raises
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_keepalives, notifier, notifier.watchdog_s / _SIGNS_OF_LIFE)
        yield notifier
        nursery.cancel_scope.cancel()


async def _send_keepalives(notifier: SystemdNotifier, every_s: float) -> None:
    while True:
        notifier.keepalive()
        await trio.sleep(every_s)


async def give_memory_back(trim: Callable[[int], int] | None = None) -> None:
    """Once a minute, give back what came free between things that stay; at once done where nobody can.

    Connections come and go for years. Without this, what they leave behind in small pieces adds up to
    megabytes, although none of it is in use.
    """
    trim = trim or _find_trim()
    while trim is not None:
        await trio.sleep(_TRIM_EVERY_S)
        # In a thread: it looks through all memory, and needs nothing of Python for that.
        await trio.to_thread.run_sync(trim, 0)


def _find_trim() -> Callable[[int], int] | None:
    """Find the C library's `malloc_trim`; None where it has none."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


def prepare_process() -> None:
    """Allow as many connections as the system lets us, and look for garbage in small steps.

    A relay's objects live as long as its connections, and go without it: looking through all of them finds
    nothing, so that is done rarely. HTTP requests leave garbage; it must not pile up. Looking through few new
    objects at a time stops everything for milliseconds only, and finds them in the processor's caches.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A thread that works for the registry holds the interpreter for so long while the event loop waits.
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 5, 400)
