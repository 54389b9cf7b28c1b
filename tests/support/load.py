"""How busy the computer is, for bounds on times: on an idle computer, they stay as they are."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

_LOOK_EVERY_S = 0.005
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


def slowdown() -> float:
    """Return how many times longer than alone a busy thread takes now; 1.0 on an idle computer."""
    began_s, began_cpu_s = time.perf_counter(), time.thread_time()
    while time.thread_time() - began_cpu_s < _BUSY_S:
        pass
    return max(1.0, (time.perf_counter() - began_s) / (time.thread_time() - began_cpu_s))
