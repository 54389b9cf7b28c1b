"""Memory that the C library keeps although nothing is in it any more, given back to the system."""

import ctypes
import logging
from collections.abc import Callable
from typing import Final

import trio

log = logging.getLogger(__name__)

_EVERY_S: Final = 60.0


async def give_memory_back(trim: Callable[[int], int] | None = None) -> None:
    """Once a minute, give back what came free between things that stay; at once done where nobody can.

    Connections come and go for years. Without this, what they leave behind in small pieces adds up to
    megabytes, although none of it is in use.
    """
    trim = trim or _find_trim()
    while trim is not None:
        await trio.sleep(_EVERY_S)
        # In a thread: it looks through all memory, and needs nothing of Python for that.
        await trio.to_thread.run_sync(trim, 0)


def _find_trim() -> Callable[[int], int] | None:
    """Find the C library's `malloc_trim`; None where it has none."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim
