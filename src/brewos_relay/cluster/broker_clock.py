"""BrokerClock: an instance's estimate of the broker's time, for the deadlines of commands."""

import time
from collections.abc import Callable
from typing import Final

_MOST_ERROR_S: Final = 0.1
"""A measurement that took longer than twice this is not used, unless it is the first one."""


def elapsed_s() -> float:
    """Return a time in s that also counts while the process or the system is paused."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class BrokerClock:
    """Estimates the broker's time from measurements. `elapsed` is a clock that never pauses."""

    def __init__(self, elapsed: Callable[[], float] = elapsed_s) -> None:
        self._elapsed = elapsed
        self._offset_s: float | None = None

    def begin(self) -> float:
        """Begin a measurement: ask the broker for its time after this."""
        return self._elapsed()

    def end(self, began_at: float, now_us: int) -> None:
        """End a measurement: the broker has answered with `now_us`."""
        ended_at = self._elapsed()
        if self._offset_s is None or ended_at - began_at <= 2 * _MOST_ERROR_S:
            self._offset_s = now_us / 1e6 - (began_at + ended_at) / 2

    def forget(self) -> None:
        """Forget the measurements, since the next broker may have another clock."""
        self._offset_s = None

    def now_us(self) -> int | None:
        """Return the broker's time in µs; None if it was never measured."""
        return None if self._offset_s is None else round((self._elapsed() + self._offset_s) * 1e6)
