"""Batched lookups: concurrent lookups of the same kind share one query."""

import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import trio

from brewos_relay.errors import RegistryError

K = TypeVar("K")
V = TypeVar("V")

OnAnswer = Callable[[float, bool], None]
"""Called for each answer with how long the caller waited, in s, and whether the lookup failed."""


def _ignore(_waited_s: float, _failed: bool) -> None:
    pass


class _Batch(Generic[K, V]):
    """Keys that are looked up in one query, and the result."""

    __slots__ = ("answered", "failure", "found", "keys")

    def __init__(self) -> None:
        self.keys: set[K] = set()
        self.answered = trio.Event()
        self.found: Mapping[K, V] = {}
        # Stays if the query never completes.
        self.failure: Exception | None = RegistryError("the registry is closed")


class Answer(Generic[K, V]):
    """The answer to a lookup, which may not be there yet."""

    __slots__ = ("_asked_s", "_batch", "_key", "_on_answer")

    def __init__(self, batch: _Batch[K, V], key: K, on_answer: OnAnswer) -> None:
        self._batch = batch
        self._key = key
        self._on_answer = on_answer
        self._asked_s = time.perf_counter()

    @property
    def is_there(self) -> bool:
        """Whether `wait` returns at once."""
        return self._batch.answered.is_set()

    async def wait(self) -> V | None:
        """Return the value of the key, None if it is missing. Raises RegistryError if the query failed.

        Cancelling it does not affect the other lookups of the query.
        """
        batch = self._batch
        if not batch.answered.is_set():  # several answers of one query cost one wait
            await batch.answered.wait()
        failure = batch.failure
        self._on_answer(time.perf_counter() - self._asked_s, failure is not None)
        if failure is not None:
            raise RegistryError(str(failure)) from failure
        return batch.found.get(self._key)


class BatchedLookup(Generic[K, V]):
    """Gathers the lookups that arrive during a query, and answers them with the next query.

    An idle registry is queried at once; the busier it is, the more lookups share a query. `query` maps the
    keys that it finds to their values. It runs in a worker thread, one query at a time.
    """

    def __init__(
        self,
        query: Callable[[list[K]], Mapping[K, V]],
        *,
        limiter: trio.CapacityLimiter,
        on_answer: OnAnswer = _ignore,
    ) -> None:
        self._query = query
        self._limiter = limiter
        self._on_answer = on_answer
        self._gathering: _Batch[K, V] = _Batch()
        self._wanted = trio.Event()
        self._closed = False

    def ask(self, key: K) -> Answer[K, V]:
        """Look a key up with the next query. Raises RegistryError once `run` has ended."""
        if self._closed:
            raise RegistryError("the registry is closed")
        batch = self._gathering
        if not batch.keys:
            self._wanted.set()
        batch.keys.add(key)
        return Answer(batch, key, self._on_answer)

    async def find(self, key: K) -> V | None:
        """Look a key up and wait for the answer; see `Answer.wait`."""
        return await self.ask(key).wait()

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
