"""ServerSignals: handles SIGTERM, SIGINT and SIGHUP, from before the start-up to the exit of a server.

The first SIGTERM or SIGINT drains the server, the second shortens the drain to the hold of the youngest
device, the third ends the process. SIGHUP reloads the certificate and never ends the process.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

import trio

log = logging.getLogger(__name__)

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class ServerSignals:
    """Counts the signals of one server process and turns them into events.

    It installs Python handlers, since the system ignores default actions for process 1.
    """

    def __init__(self) -> None:
        self.leave = trio.Event()
        """Set by the first SIGTERM or SIGINT."""
        self.hurry = trio.Event()
        """Set by the second."""
        self.first = signal.SIGTERM
        """The signal that set `leave`."""
        self.before_end: Callable[[], None] | None = None
        """Called by the third one, before it ends the process."""
        self._endings = 0
        self._wants_reload = False
        self._changed = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._starting: trio.CancelScope | None = None

    @contextmanager
    def caught(self) -> Iterator["ServerSignals"]:
        """Catch the signals while the block runs. Outside the main thread, which gets no signals, do nothing.

        After the block, SIGHUP is ignored, since the interpreter restores the defaults during its exit.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        earlier = {number: signal.signal(number, self._receive) for number in _ENDING}
        signal.signal(signal.SIGHUP, self._receive)
        try:
            yield self
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            for number, action in earlier.items():
                signal.signal(number, action)

    def listen(self) -> None:
        """Deliver signals to the current Trio run, including signals that arrived before."""
        self._token = trio.lowlevel.current_trio_token()
        self._tell()

    def start_scope(self) -> trio.CancelScope:
        """Return a scope that the first SIGTERM or SIGINT cancels until `mark_started` is called."""
        self._starting = trio.CancelScope()
        if self.leave.is_set():
            self._starting.cancel()
        return self._starting

    def mark_started(self) -> None:
        """Mark the start-up as over: signals no longer cancel the scope of `start_scope`."""
        self._starting = None

    def begin_leave(self) -> None:
        """Do what the first SIGTERM does, unless there was one."""
        if not self._endings:
            self._receive(signal.SIGTERM, None)

    def begin_hurry(self) -> None:
        """Do what the second SIGTERM does, unless there were two."""
        self.begin_leave()
        if self._endings == 1:
            self._receive(signal.SIGTERM, None)

    def reload(self) -> None:
        """Do what SIGHUP does."""
        self._receive(signal.SIGHUP, None)

    async def wait_for_reload(self) -> bool:
        """Wait for the next request. Return True to reload, False to end."""
        while not (self.leave.is_set() or self._wants_reload):
            self._changed = trio.Event()
            await self._changed.wait()
        self._wants_reload = False
        return not self.leave.is_set()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal, between any two instructions of the main thread."""
        if number == signal.SIGHUP:
            self._wants_reload = True
        else:
            self._endings += 1
            if self._endings == 1:
                self.first = signal.Signals(number)
            elif self._endings == 2 and os.getpid() != 1 and self.before_end is None:
                # So that the third one works even if this thread never runs another instruction.
                for ending in _ENDING:
                    signal.signal(ending, signal.SIG_DFL)
            elif self._endings > 2:
                if self.before_end is not None:
                    self.before_end()
                _end_process(number)
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        """Set the events for the signals so far; runs in Trio."""
        if self._endings >= 1 and not self.leave.is_set():
            self.leave.set()
            if self._starting is not None:
                self._starting.cancel()
        if self._endings >= 2 and not self.hurry.is_set():
            log.warning("second signal: closing all peers now, devices as soon as their keys are safe")
            self.hurry.set()
        self._changed.set()


def _end_process(number: int) -> NoReturn:
    """End the process at once, by this signal or, as process 1, with the exit code for it."""
    if os.getpid() != 1:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)
