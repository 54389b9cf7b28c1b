"""Waiting for what nobody announces."""

from collections.abc import Callable

import trio


async def until(so: Callable[[], bool]) -> None:
    """Wait until something is so; whoever calls has a deadline."""
    while not so():  # noqa: ASYNC110 - nobody says when
        await trio.sleep(0.002)
