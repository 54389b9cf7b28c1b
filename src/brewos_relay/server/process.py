"""The server's process: resource limits, garbage collection, systemd notifications, unused memory."""

import ctypes
import gc
import logging
import math
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final, cast

import trio

from brewos_relay.settings import Settings
from brewos_relay.telemetry.logs import LogFormat, configure_logging, flush_logs, log_uncaught

log = logging.getLogger(__name__)

_ADDRESS: Final = "NOTIFY_SOCKET"
_WATCHDOG_US: Final = "WATCHDOG_USEC"
_WATCHDOG_PID: Final = "WATCHDOG_PID"
_KEEPALIVES_PER_INTERVAL: Final = 3
"""How many watchdog keepalives are sent per watchdog interval of systemd."""
_SEND_S: Final = 1.0
"""How long a change of the state waits for systemd, whose queue of messages may be full of keepalives."""
_SWITCH_S: Final = 0.0001
"""A fiftieth of Python's default. The event loop gives up the lock at each read and write of a socket. During
a flood, connecting took 2.7 ms (median); with a tenth of the default, it took 4.0 ms."""
_TRIM_EVERY_S: Final = 60.0


@contextmanager
def logging_of(settings: Settings) -> Iterator[None]:
    """Log as the settings say, also uncaught exceptions; in the end, wait until everything is written."""
    configure_logging(
        level=settings.log_level,
        log_format=cast("LogFormat", settings.log_format),
        secrets=settings.secrets(),
    )
    log_uncaught()
    try:
        yield
    finally:
        flush_logs()


class SystemdNotifier:
    """Sends notifications to systemd, for services with `Type=notify`; see sd_notify(3).

    Without NOTIFY_SOCKET in the environment, it sends nothing. `watchdog_s` is systemd's watchdog interval,
    or None if it expects no keepalives.
    """

    def __init__(self, address: str | None = None, *, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        self._has_warned = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "SystemdNotifier":
        """Make a notifier from systemd's variables. Invalid variables are ignored."""
        address = environ.get(_ADDRESS, "")
        if address[:1] not in {"/", "@"}:
            return cls()
        interval_us, process = environ.get(_WATCHDOG_US, ""), environ.get(_WATCHDOG_PID) or str(os.getpid())
        is_watched = interval_us.isdecimal() and int(interval_us) > 0 and process == str(os.getpid())
        return cls(address, watchdog_s=int(interval_us) / 1e6 if is_watched else None)

    def ready(self, status: str) -> None:
        """Report that the server is up, or up again after `reloading`, with a short status text."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that the server reloads its configuration; `ready` must follow."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self, status: str, *, within_s: float) -> None:
        """Report that the process is ending, and how long that may take.

        systemd then waits at least that long, even if `TimeoutStopSec` is shorter.
        """
        self._send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={math.ceil(within_s * 1e6)}")

    def keepalive(self) -> None:
        """Send a watchdog keepalive."""
        self._send("WATCHDOG=1", waits=False)

    def _send(self, *lines: str, waits: bool = True) -> None:
        if self._address is None:
            return
        # A leading @ stands for the abstract namespace of Unix sockets.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_manager:
                to_manager.settimeout(_SEND_S if waits else 0.0)
                to_manager.connect(address)
                to_manager.send("\n".join(lines).encode())
        except OSError as problem:
            if not self._has_warned:
                log.warning("cannot notify systemd at %s: %s", self._address, problem.strerror or problem)
            self._has_warned = True


@asynccontextmanager
async def open_notifier(notifier: SystemdNotifier | None = None) -> AsyncIterator[SystemdNotifier]:
    """Send watchdog keepalives while the block runs, if systemd expects them.

    A Trio task sends them. If the event loop hangs, the keepalives stop, and systemd can restart the process.

    **Owns:** that task.
    """
    notifier = SystemdNotifier.from_environment() if notifier is None else notifier
    if notifier.watchdog_s is None:
        yield notifier  # without a nursery, which would wrap the exceptions of the block
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_keepalives, notifier, notifier.watchdog_s / _KEEPALIVES_PER_INTERVAL)
        yield notifier
        nursery.cancel_scope.cancel()


async def _send_keepalives(notifier: SystemdNotifier, every_s: float) -> None:
    while True:
        notifier.keepalive()
        await trio.sleep(every_s)


async def give_memory_back(trim: Callable[[int], int] | None = None) -> None:
    """Return free memory of the C library to the system once a minute. Return at once if it cannot do that.

    A server runs for years. Without this, the free pieces between used memory add up to megabytes.
    """
    trim = trim or _find_trim()
    while trim is not None:
        await trio.sleep(_TRIM_EVERY_S)
        # In a thread: it walks through all memory, without holding Python's lock.
        await trio.to_thread.run_sync(trim, 0)


def _find_trim() -> Callable[[int], int] | None:
    """Return the C library's `malloc_trim`, or None if it has none."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


def prepare_process() -> None:
    """Raise the limit of open files to the maximum, and set the garbage collector to small steps.

    The objects of connections form no reference cycles, so full collections are rare. HTTP requests leave
    cycles behind. Small and frequent collections take milliseconds and find the objects in the caches. The
    imports leave 4 MiB of unused memory behind, which is returned to the system.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A registry thread holds the interpreter for at most this long while the event loop waits.
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 5, 400)
    if (trim := _find_trim()) is not None:
        trim(0)
