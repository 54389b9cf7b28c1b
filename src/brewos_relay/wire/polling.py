"""open_poller: a poller and its task."""

# Not in `wire.poller`, because mypyc compiles that module and knows no async generators.

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from brewos_relay.core.counters import Counters
from brewos_relay.wire.poller import Poller


@asynccontextmanager
async def open_poller(counters: Counters | None = None) -> AsyncIterator[Poller]:
    """Open a poller, and run it until the block is left. It measures `counters.latency`.

    **Owns:** the task that reads.
    """
    poller = Poller(counters)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            yield poller
            nursery.cancel_scope.cancel()
    finally:
        poller.close()
