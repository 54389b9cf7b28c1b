"""Polling for a condition."""

from collections.abc import Callable

import trio


async def until(so: Callable[[], bool]) -> None:
    """Wait until `so()` is true. The caller sets the deadline."""
    while not so():  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(0.002)
