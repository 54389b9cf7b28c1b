"""Slow hashing in threads of low priority, so that the event loop and the registry run first."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

import trio

_NICER: Final = 10
"""A tenth of the usual share of a busy processor. A thread that ends needs Python's lock for a moment, so a
smaller share could delay the other threads."""
_NICER_IF_KNOWN: Final = 5
"""A third of the usual share."""

T = TypeVar("T")


async def hash_in_thread(
    work: Callable[..., T], *args: object, known: bool, limiter: trio.CapacityLimiter | None = None
) -> T:
    """Call `work` in a thread of low priority, which ends with it. Work of a `known` caller is less low.

    A hash occupies a processor for 30 ms. At the usual priority, a connection of a machine would wait for
    the rest of its time slice at each of its steps.
    """

    def call() -> T:
        # A thread cannot raise its priority again, so the threads that Trio reuses must keep theirs.
        by = _NICER_IF_KNOWN if known else _NICER
        with ThreadPoolExecutor(1, "hashing", initializer=_lower_priority, initargs=(by,)) as thread:
            return thread.submit(work, *args).result()

    return await trio.to_thread.run_sync(call, limiter=limiter)


def _lower_priority(by: int) -> None:
    """Lower the priority of the current thread, on Linux. Elsewhere, only processes have one."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + by)
