"""The time of a test, without the delays of a busy computer."""

# Apart from `support.load`: all tests import it, and it imports little.

import os
import threading
import time
from contextlib import suppress

import trio


class SteadyClock(trio.abc.Clock):
    """A clock that stands still while its thread waits for a processor.

    So a bound on a time is the same on a busy computer. It is a usual clock where Linux does not tell.
    """

    def __init__(self) -> None:
        self._waits: int | None = None
        with suppress(OSError):
            self._waits = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def start_clock(self) -> None:
        """Do nothing: it runs."""

    def current_time(self) -> float:
        waited_ns = 0 if self._waits is None else int(os.pread(self._waits, 100, 0).split()[1])
        return time.perf_counter() - waited_ns / 1e9

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()

    def close(self) -> None:
        if self._waits is not None:
            os.close(self._waits)
