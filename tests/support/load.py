"""How busy the computer is, for bounds on times: on an idle computer, they stay as they are."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from support.workers import descendants

_LOOK_EVERY_S = 0.005
_SAMPLE_EVERY_S = 0.25


@dataclass
class Lateness:
    """How late this event loop ran at worst, in s."""

    worst_s: float = 0.0


@asynccontextmanager
async def measured_lateness() -> AsyncIterator[Lateness]:
    """Measure the lateness of this event loop while the block runs. **Owns:** a task."""
    lateness = Lateness()

    async def measure() -> None:
        while True:
            due_at = trio.current_time() + _LOOK_EVERY_S
            await trio.sleep_until(due_at)
            lateness.worst_s = max(lateness.worst_s, trio.current_time() - due_at)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        yield lateness
        nursery.cancel_scope.cancel()


class Delay:
    """How long this process and those that it has started have waited for a processor.

    A bound on a time can be longer by this, and stays as strict on an idle computer as without it. It is 0.0
    where Linux does not tell.
    """

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._waited_s: dict[int, float] = {}
        """By thread, so that those count that have ended."""
        self._totals_s: list[tuple[float, float]] = []
        """Times, and the totals up to then."""
        self.sample()

    def since(self, at_s: float) -> float:
        """Return how long they have waited since this time of the clock, in s."""
        self.sample()
        before_s = max((total_s for time_s, total_s in self._totals_s if time_s <= at_s), default=0.0)
        return self._totals_s[-1][1] - max(before_s, self._totals_s[0][1])

    def worst_s(self, within_s: float) -> float:
        """Return how long they have waited at most within a period of this length, in s."""
        self.sample()
        return max(
            later_s - total_s
            for time_s, total_s in self._totals_s
            for later_at_s, later_s in self._totals_s
            if 0 <= later_at_s - time_s <= within_s + 2 * _SAMPLE_EVERY_S
        )

    def sample(self) -> None:
        for pid in {os.getpid()} | descendants(os.getpid()):
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with suppress(OSError):  # it has ended
                    self._waited_s[int(file.parent.name)] = int(file.read_text().split()[1]) / 1e9
        with suppress(OSError):  # what the host of a virtual machine took
            ticks = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
            self._waited_s[0] = ticks / os.sysconf("SC_CLK_TCK")
        self._totals_s.append((self._clock(), sum(self._waited_s.values())))


@asynccontextmanager
async def measured_delay() -> AsyncIterator[Delay]:
    """Measure the delay while the block runs. **Owns:** a task."""
    delay = Delay()

    async def measure() -> None:
        while True:
            await trio.sleep(_SAMPLE_EVERY_S)
            delay.sample()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        yield delay
        nursery.cancel_scope.cancel()


async def sleep_undelayed(seconds: float) -> None:
    """Give other processes a time to act, and as much more as processes wait for a processor meanwhile.

    Many processes wait longer in sum than the time that passes, so ten times as long is enough.
    """
    began_at = trio.current_time()
    with trio.move_on_after(10 * seconds):
        async with measured_delay() as delay:
            while trio.current_time() - began_at < seconds + delay.since(began_at):  # noqa: ASYNC110
                await trio.sleep(_SAMPLE_EVERY_S)
