"""Give the server one processor and the load generator another."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pins:
    """The processor of each side; None leaves the choice to the system."""

    server: int | None = None
    generator: int | None = None


def describe(pins: Pins) -> str:
    if pins.server is None:
        return "server and generator on processors that the system chose"
    return f"server on processor {pins.server}, generator on {pins.generator}"


def choose_pins() -> Pins:
    """Choose two processors, of two cores if possible, among those we may use; none if there is but one.

    The generator gets the first one, which is where most systems take interrupts.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return Pins()
    first, *others = allowed
    apart = [cpu for cpu in others if cpu not in _siblings(first)]
    return Pins(server=(apart or others)[-1], generator=first)


def pinned_to(cpu: int | None) -> Callable[[], None] | None:
    """Return what a new process does before it becomes a program (`preexec_fn`), if it is to be pinned."""
    return None if cpu is None else partial(os.sched_setaffinity, 0, {cpu})


def _siblings(cpu: int) -> set[int]:
    """Return the processors that share a core with this one, and itself."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        return read_list(text)
    except (OSError, ValueError):
        return {cpu}


def read_list(text: str) -> set[int]:
    """Read a list of processors as Linux writes it: `0,4` or `0-3,8`."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
