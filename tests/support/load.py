"""How busy the computer is, for bounds on times: on an idle computer, they stay as they are."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from support.workers import descendants

_LOOK_EVERY_S = 0.005
_SAMPLE_EVERY_S = 0.1
_BUSY_S = 0.05


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


@dataclass
class Delay:
    """How long a group of processes has waited for a processor: this one, `pids`, and their children."""

    pids: tuple[int, ...]
    _waited_s: dict[int, float] = field(default_factory=dict)
    """By thread, so that those count that have ended."""
    _began_s: float = 0.0

    @property
    def s(self) -> float:
        """The total since the block began, in s; 0.0 on an idle computer, or where Linux does not tell."""
        self.sample()
        return sum(self._waited_s.values()) - self._began_s

    def sample(self) -> None:
        for pid in {os.getpid(), *self.pids}.union(*map(descendants, self.pids)):
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with suppress(OSError):
                    self._waited_s[int(file.parent.name)] = int(file.read_text().split()[1]) / 1e9
        with suppress(OSError):  # what the host of a virtual machine took
            ticks = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
            self._waited_s[0] = ticks / os.sysconf("SC_CLK_TCK")

    def begin(self) -> None:
        self.sample()
        self._began_s = sum(self._waited_s.values())


@asynccontextmanager
async def measured_delay(*pids: int) -> AsyncIterator[Delay]:
    """Measure how long these processes wait for a processor while the block runs. **Owns:** a task.

    A bound on a time can be longer by this, and stays as strict as on an idle computer.
    """
    delay = Delay(pids)
    delay.begin()

    async def measure() -> None:
        while True:
            await trio.sleep(_SAMPLE_EVERY_S)
            delay.sample()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        yield delay
        nursery.cancel_scope.cancel()


def slowdown() -> float:
    """Return how many times longer than alone a busy thread takes now; 1.0 on an idle computer."""
    began_s, began_cpu_s = time.perf_counter(), time.thread_time()
    while time.thread_time() - began_cpu_s < _BUSY_S:
        pass
    return max(1.0, (time.perf_counter() - began_s) / (time.thread_time() - began_cpu_s))
