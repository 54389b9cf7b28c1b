"""What SIGTERM, SIGINT and SIGHUP do to a server, from before its start-up to its exit.

The first SIGTERM or SIGINT drains the server, the second shortens the drain to the hold of the youngest
device, the third ends the process. SIGHUP reloads the certificate and never ends the process.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

import trio

log = logging.getLogger(__name__)

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class ServerSignals:
    """Counts the signals of one server process, and says what each asks for.

    The handlers are Python's, not the system's defaults: the system ignores default actions for process 1.
    """

    def __init__(self) -> None:
        self.leave = trio.Event()
        """Set by the first SIGTERM or SIGINT."""
        self.hurry = trio.Event()
        """Set by the second."""
        self.first = signal.SIGTERM
        """The signal that set `leave`."""
        self._endings = 0
        self._wants_reload = False
        self._changed = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._starting: trio.CancelScope | None = None

    @contextmanager
    def caught(self) -> Iterator["ServerSignals"]:
        """Catch the signals while the block runs; outside the main thread, where none arrives, do nothing.

        After the block SIGHUP is ignored: the interpreter restores the defaults while it ends.
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
        """Tell the Trio program that calls this of each signal, also of those that came before."""
        self._token = trio.lowlevel.current_trio_token()
        self._tell()

    def start_scope(self) -> trio.CancelScope:
        """Give a scope that the first SIGTERM or SIGINT cancels, unless `note_started` was called before."""
        self._starting = trio.CancelScope()
        if self.leave.is_set():
            self._starting.cancel()
        return self._starting

    def note_started(self) -> None:
        """Note that the start-up is over."""
        self._starting = None

    async def wait_for_reload(self) -> bool:
        """Wait for the next signal that asks for something: True for a reload, False for an end."""
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
            elif self._endings == 2 and os.getpid() != 1:
                # So that the third works even where this thread never runs an instruction again.
                for ending in _ENDING:
                    signal.signal(ending, signal.SIG_DFL)
            elif self._endings > 2:
                _end_process(number)
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        """Set the events that the signals so far ask for; runs in Trio."""
        if self._endings >= 1 and not self.leave.is_set():
            self.leave.set()
            if self._starting is not None:
                self._starting.cancel()
        if self._endings >= 2 and not self.hurry.is_set():
            log.warning("a second signal: every peer is closed now, devices as soon as their keys are safe")
            self.hurry.set()
        self._changed.set()


def _end_process(number: int) -> NoReturn:
    """End the process at once, with the exit code of one that a signal has ended."""
    os._exit(128 + number)
