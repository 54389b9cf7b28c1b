"""BrokerClock: bounds of the broker's time at an instance, for claims and the deadlines of commands."""

import math
import time
from collections.abc import Callable
from typing import Final

_REMEMBER_S: Final = 10.0
"""How long an instance may go without a measurement before it loses its connection."""
_DRIFT: Final = 2e-4
"""By how much two clocks drift apart, at most, in s for each second."""
_ROUNDING_S: Final = 2e-6


def elapsed_s() -> float:
    """Return a time in s that also counts while the process or the system is paused."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class BrokerClock:
    """Bounds the broker's time by measurements. `elapsed` is a clock that never pauses.

    A measurement is exact to within its duration, and further ones make the bounds narrower. If the broker's
    clock is changed, the bounds include its former time for a while, since other instances may not have
    measured it again yet.
    """

    def __init__(self, elapsed: Callable[[], float] = elapsed_s) -> None:
        self._elapsed = elapsed
        self._least_s, self._most_s = math.inf, -math.inf  # how far the broker's clock is ahead of this one
        self._measured_at = -math.inf
        self._former: list[tuple[float, float, float]] = []  # until when they count, and the bounds

    def begin(self) -> float:
        """Begin a measurement: ask the broker for its time after this."""
        return self._elapsed()

    def end(self, began_at: float, now_us: int) -> None:
        """End a measurement: the broker has answered with `now_us`."""
        ended_at = self._elapsed()
        least_s, most_s = now_us / 1e6 - ended_at, now_us / 1e6 - began_at
        self._former = [former for former in self._former if former[0] > ended_at]
        if self._least_s <= self._most_s:
            drift_s = _DRIFT * (ended_at - self._measured_at) + _ROUNDING_S
            self._least_s, self._most_s = self._least_s - drift_s, self._most_s + drift_s
        self._measured_at = ended_at
        if least_s <= self._most_s and most_s >= self._least_s:
            self._least_s, self._most_s = max(least_s, self._least_s), min(most_s, self._most_s)
            return
        if self._least_s <= self._most_s:  # the broker's clock was changed
            self._former.append((ended_at + _REMEMBER_S, self._least_s, self._most_s))
        self._least_s, self._most_s = least_s, most_s

    def now_us(self) -> int | None:
        """Return the most likely time in µs by the broker's clock; None if it was never measured."""
        return self._us((self._least_s + self._most_s) / 2)

    def earliest_us(self) -> int | None:
        """Return a time in µs that the broker's clock has reached; None if it was never measured."""
        return self._us(min((self._least_s, *(least_s for _, least_s, _ in self._former))))

    def latest_us(self) -> int | None:
        """Return a time in µs that the broker's clock has not passed; None if it was never measured."""
        return self._us(max((self._most_s, *(most_s for _, _, most_s in self._former))))

    def _us(self, ahead_s: float) -> int | None:
        return round((self._elapsed() + ahead_s) * 1e6) if math.isfinite(ahead_s) else None
