"""One task for the timers of many: each says when it is to be looked at again."""

import math
from heapq import heappop, heappush
from typing import Final, Protocol

import trio

#: Whoever is due within this time is looked at in the same turn.
GRAIN_S: Final = 0.05
_SOONEST_S: Final = 0.001


class Timed(Protocol):
    """What a clock looks at; `due_s` belongs to the clock."""

    due_s: float

    def tick(self, now_s: float) -> float:
        """Do what is due, and say when to come again (trio time)."""


class TimerQueue:
    """Looks at everything that was given to it, when it is due. **Owns:** nothing; `run` is its task."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._count = 0
        self._earlier = trio.Event()
        self._sleeps_until_s = math.inf

    def wake(self, timed: Timed, at_s: float) -> None:
        """Look at something at `at_s`, or when it was due anyway if that is earlier."""
        if at_s < timed.due_s:
            self._push(timed, at_s)

    def forget(self, timed: Timed) -> None:
        """Look at it no more."""
        timed.due_s = math.inf

    async def run(self) -> None:
        """Tick for ever. **Ends when:** cancelled."""
        while True:
            self._sleeps_until_s = self._heap[0][0] + GRAIN_S if self._heap else math.inf
            self._earlier = trio.Event()
            with trio.move_on_at(self._sleeps_until_s):
                await self._earlier.wait()
            now_s = trio.current_time()
            while self._heap and self._heap[0][0] <= now_s:
                at_s, _, timed = heappop(self._heap)
                # What was woken earlier meanwhile is in the heap twice.
                if at_s == timed.due_s:
                    timed.due_s = math.inf
                    # Never at once again: a time that cannot be waited for would be waited for without end.
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
