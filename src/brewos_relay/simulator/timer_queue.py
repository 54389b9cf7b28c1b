"""One task for the timers of many objects."""

import math
from heapq import heappop, heappush
from typing import Final, Protocol

import trio

#: Objects that are due within this time are called together.
GRAIN_S: Final = 0.05
_SOONEST_S: Final = 0.001


class Timed(Protocol):
    """An object with a timer.

    `due_s` is the time of its next call, infinite at first; only the TimerQueue changes it.
    """

    due_s: float

    def tick(self, now_s: float) -> float:
        """Do the work that is due. Return the time of the next call (Trio time)."""


class TimerQueue:
    """Calls `tick` of each object when it is due. **Owns:** nothing; `run` is its task."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._count = 0
        self._earlier = trio.Event()
        self._sleeps_until_s = math.inf

    def wake(self, timed: Timed, at_s: float) -> None:
        """Call the object at `at_s`, or earlier if it is due earlier."""
        if at_s < timed.due_s:
            self._push(timed, at_s)

    def forget(self, timed: Timed) -> None:
        """Remove an object."""
        timed.due_s = math.inf

    async def run(self) -> None:
        """Call due objects until cancelled. **Ends when:** cancelled."""
        while True:
            self._sleeps_until_s = self._heap[0][0] + GRAIN_S if self._heap else math.inf
            self._earlier = trio.Event()
            with trio.move_on_at(self._sleeps_until_s):
                await self._earlier.wait()
            now_s = trio.current_time()
            while self._heap and self._heap[0][0] <= now_s:
                at_s, _, timed = heappop(self._heap)
                # An object that was woken earlier meanwhile is in the heap twice.
                if at_s == timed.due_s:
                    timed.due_s = math.inf
                    # Never immediately again: that would be an endless loop.
                    self._push(timed, max(timed.tick(now_s), now_s + _SOONEST_S))
            await trio.lowlevel.checkpoint()

    def _push(self, timed: Timed, at_s: float) -> None:
        if at_s >= timed.due_s or math.isinf(at_s):
            return
        timed.due_s = at_s
        self._count += 1
        heappush(self._heap, (at_s, self._count, timed))
        if at_s + GRAIN_S < self._sleeps_until_s:
            self._earlier.set()
