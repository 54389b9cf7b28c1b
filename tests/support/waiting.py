"""Wait for a condition, and count how often others run meanwhile."""

from collections.abc import Awaitable, Callable

import trio


async def until(so: Callable[[], bool]) -> None:
    """Wait until `so()` is true. The caller sets the deadline."""
    while not so():  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(0.002)


async def count_turns(run: Callable[[], Awaitable[object]]) -> int:
    """Run a function, and return how many turns another task had meanwhile."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await run()
        nursery.cancel_scope.cancel()
    return turns
