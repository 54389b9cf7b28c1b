"""Pauses: times without a running process, for example after SIGSTOP or in a suspended system.

Silence during a pause says nothing about a peer: its messages wait to be read. `RunningClock`
stops in a pause, so that no deadline passes. `PauseWatch` detects a pause, so that silence can be measured
from its end.
"""

import random
import time
from math import inf
from time import perf_counter
from typing import Final

import trio

PAUSE_S: Final = 2.0
"""An event loop that is late by more than this was paused."""


class RunningClock(trio.abc.Clock):
    """A clock for `trio.run` that stops in a pause, so that no deadline passes in it."""

    __slots__ = ("_latest_s", "_offset_s", "left_out_s")

    def __init__(self) -> None:
        self.left_out_s = 0.0
        """How much time the clock has left out so far."""
        self._offset_s = random.uniform(10_000, 1_000_000)  # noqa: S311 - as Trio does: the times of two clocks do not match
        self._latest_s = inf
        """When a running loop reads the clock again, at the latest."""

    def start_clock(self) -> None:
        """Do nothing: the clock runs already."""

    def current_time(self) -> float:
        """Read the clock. Trio does so in every turn of its loop."""
        real_s = perf_counter()
        if real_s > self._latest_s:
            late_s = real_s - self._latest_s + PAUSE_S
            self.left_out_s += late_s
            self._offset_s -= late_s
        self._latest_s = real_s + PAUSE_S
        return real_s + self._offset_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long to sleep, and expect the next reading of the clock after that."""
        return self.sleep_time(deadline, self.current_time())

    def sleep_time(self, deadline: float, now: float) -> float:
        """The same, if the clock has just been read."""
        sleep_s = deadline - now
        self._latest_s += max(0.0, sleep_s)
        return sleep_s


class PauseWatch:
    """Detects that the process was paused since the last check.

    It combines three measurements: how late the loop is on its own clock, how much time a `RunningClock` left
    out, and how long the system was suspended, when the monotonic clock stops.
    """

    def __init__(self) -> None:
        self._due_at = inf
        self._unseen_s = 0.0

    def expect(self, due_at: float) -> None:
        """Note when the next check is due (trio time)."""
        self._due_at = due_at
        self._unseen_s = _unseen_s()

    def check(self, now: float) -> tuple[float, float]:
        """Return how long the process was paused, and how much of that is missing on Trio's clock."""
        unseen_s = _unseen_s() - self._unseen_s
        paused_s = max(0.0, now - self._due_at) + unseen_s
        return (paused_s, unseen_s) if paused_s > PAUSE_S else (0.0, 0.0)


def left_out_s() -> float:
    """Return how much time the clock of this Trio run has left out."""
    clock = trio.lowlevel.current_clock()
    return clock.left_out_s if isinstance(clock, RunningClock) else 0.0


def _unseen_s() -> float:
    """Return how much time Trio's clock has not counted since a fixed moment."""
    return left_out_s() + _suspended_s()


def _suspended_s() -> float:
    """Return how long the system has been suspended since it started; 0 if it cannot tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
