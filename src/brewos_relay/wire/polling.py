"""open_poller: a poller and its task."""

# Not in `wire.poller`, because mypyc compiles that module and knows no async generators.

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from brewos_relay.core.counters import Counters
from brewos_relay.wire.hosting import free_host
from brewos_relay.wire.poller import Poller


@asynccontextmanager
async def open_poller(counters: Counters | None = None) -> AsyncIterator[Poller]:
    """Open a poller, and run it until the block is left. It measures `counters.latency`.

    In a hosted run, the loop around Trio runs it; see `wire.hosting`.

    **Owns:** the task that reads, or that lets the loop read.
    """
    poller = Poller(counters)
    host = free_host()
    try:
        async with trio.open_nursery() as nursery:
            if host is None:
                nursery.start_soon(poller.run)
            else:
                host.is_taken = True
                nursery.start_soon(host.serve, poller)
            yield poller
            nursery.cancel_scope.cancel()
    finally:
        if host is not None:
            host.is_taken = False
        poller.close()
