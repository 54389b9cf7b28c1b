"""Batched lookups: concurrent lookups of the same kind share one query."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import trio

from brewos_relay.errors import RegistryError

K = TypeVar("K")
V = TypeVar("V")


class _Batch(Generic[K, V]):
    """Keys that are looked up in one query, and the result."""

    def __init__(self) -> None:
        self.keys: set[K] = set()
        self.answered = trio.Event()
        self.found: Mapping[K, V] = {}
        # Stays if the query never completes.
        self.failure: Exception | None = RegistryError("the registry is closed")


class BatchedLookup(Generic[K, V]):
    """Gathers the lookups that arrive during a query, and answers them with the next query.

    An idle registry is queried at once; the busier it is, the more lookups share a query. `query` maps the
    keys that it finds to their values. It runs in a worker thread, one query at a time.
    """

    def __init__(self, query: Callable[[list[K]], Mapping[K, V]], *, limiter: trio.CapacityLimiter) -> None:
        self._query = query
        self._limiter = limiter
        self._gathering: _Batch[K, V] = _Batch()
        self._wanted = trio.Event()
        self._closed = False

    async def find(self, key: K) -> V | None:
        """Look a key up. Returns None if it is missing; raises RegistryError if its query failed.

        Cancelling a lookup does not affect the other lookups of the query.
        """
        if self._closed:
            raise RegistryError("the registry is closed")
        batch = self._gathering
        batch.keys.add(key)
        self._wanted.set()
        await batch.answered.wait()
        if batch.failure is not None:
            raise RegistryError(str(batch.failure)) from batch.failure
        return batch.found.get(key)

    async def run(self) -> None:
        """Answer lookups until cancelled. Lookups that still wait then fail."""
        try:
            while True:
                await self._wanted.wait()
                batch, self._gathering = self._gathering, _Batch()
                self._wanted = trio.Event()
                await self._answer(batch)
        finally:
            self._closed = True
            self._gathering.answered.set()

    async def _answer(self, batch: _Batch[K, V]) -> None:
        try:
            batch.found = await trio.to_thread.run_sync(self._query, list(batch.keys), limiter=self._limiter)
            batch.failure = None
        except Exception as failure:
            # The failure goes to the lookups of this query only; the next query may succeed.
            batch.failure = failure
        finally:
            batch.answered.set()
