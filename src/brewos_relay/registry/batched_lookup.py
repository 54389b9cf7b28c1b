"""Batched lookups: concurrent lookups of the same kind share one query."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Generic, TypeVar

import trio

from brewos_relay.errors import RegistryError

K = TypeVar("K")
V = TypeVar("V")

_CLOSE_S: Final = 15.0
"""How long closing waits for a query. A lock of the database is waited for at most 10 s."""

OnAnswer = Callable[[float, bool], None]
"""Called for each answer with how long the caller waited, in s, and whether the lookup failed."""


_OVERDUE: Final = RegistryError("the registry did not answer in time")


def _ignore(_waited_s: float, _failed: bool) -> None:
    pass


class _Batch(Generic[K, V]):
    """Keys that are looked up in one query, and the result."""

    __slots__ = ("failure", "found", "is_answered", "keys", "waiting")

    def __init__(self) -> None:
        self.keys: set[K] = set()
        self.is_answered = False
        self.waiting: dict[trio.lowlevel.Task, float] = {}
        """The tasks that wait for the answer, and until when (trio time)."""
        self.found: Mapping[K, V] = {}
        # Stays if the query never completes.
        self.failure: Exception | None = RegistryError("the registry is closed")

    async def wait(self, until: float) -> None:
        """Wait until the query is answered, or `end_waits` is called with this time or a later one."""
        task = trio.lowlevel.current_task()

        def stop_waiting(_raise_cancel: object) -> trio.lowlevel.Abort:
            del self.waiting[task]
            return trio.lowlevel.Abort.SUCCEEDED

        self.waiting[task] = until
        await trio.lowlevel.wait_task_rescheduled(stop_waiting)

    def answer(self) -> None:
        """Let all waiting tasks continue: the query is answered."""
        self.is_answered = True
        self.end_waits(math.inf)

    def end_waits(self, now: float) -> float:
        """Let the tasks continue that wait until `now` at most. Return until when the next one waits."""
        next_until = math.inf
        for task, until in list(self.waiting.items()):
            if until <= now:
                del self.waiting[task]
                trio.lowlevel.reschedule(task)
            else:
                next_until = min(next_until, until)
        return next_until


class Answer(Generic[K, V]):
    """The answer to a lookup, which may not be there yet."""

    __slots__ = ("_asked_s", "_batch", "_key", "_lookup")

    def __init__(self, lookup: "BatchedLookup[K, V]", batch: _Batch[K, V], key: K) -> None:
        self._lookup = lookup
        self._batch = batch
        self._key = key
        self._asked_s = time.perf_counter()

    @property
    def is_there(self) -> bool:
        """Whether `wait` returns at once."""
        return self._batch.is_answered

    async def wait(self, *, until: float = math.inf) -> V | None:
        """Return the value of the key, None if it is missing. Raises RegistryError if the query failed.

        It also raises RegistryError if there is no answer `until` a time (trio time). This costs less than a
        cancel scope around it. Cancelling it does not affect the other lookups of the query.
        """
        batch = self._batch
        if not batch.is_answered:  # several answers of one query cost one wait
            self._lookup.begin()
        if not batch.is_answered:  # it is, if no thread was available
            self._lookup.expect_answer(until)
            await batch.wait(until)
        failure = batch.failure if batch.is_answered else _OVERDUE
        self._lookup.on_answer(time.perf_counter() - self._asked_s, failure is not None)
        if failure is not None:
            raise RegistryError(str(failure)) from failure
        return batch.found.get(self._key)


class BatchedLookup(Generic[K, V]):
    """Gathers the lookups that arrive during a query, and answers them with the next query.

    An idle registry is queried at once; the busier it is, the more lookups share a query. `query` maps the
    keys that it finds to their values. It runs in a worker thread, one query at a time.

    A machine waits for its lookup, while the event loop may be busy with other work in each of its turns. So
    a query is started and answered without a task in between, which would take two more turns. The thread
    takes the keys when it runs, so that those of the same turn share its query.
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
        self.on_answer = on_answer
        self._gathering: _Batch[K, V] = _Batch()
        self._lock = threading.Lock()
        """Held while a key is added, and while the thread takes the keys."""
        self._running: _Batch[K, V] | None = None
        self._is_busy = False  # a thread runs, or the next query waits for the limiter
        self._in_thread = False
        self._queued = trio.Event()  # set if the next query has to wait for the limiter
        self._overdue = trio.CancelScope()  # its deadline is when the first wait is to end
        self._closed = False
        self._ended = trio.Event()  # set when a query has ended after that

    def ask(self, key: K) -> Answer[K, V]:
        """Look a key up with the next query, which `Answer.wait` or `begin` starts.

        Raises RegistryError once `run` has ended.
        """
        if self._closed:
            raise RegistryError("the registry is closed")
        with self._lock:
            batch = self._gathering
            batch.keys.add(key)
        return Answer(self, batch, key)

    async def find(self, key: K) -> V | None:
        """Look a key up and wait for the answer; see `Answer.wait`."""
        return await self.ask(key).wait()

    def begin(self) -> None:
        """Start a query for the keys that were asked for, unless one is running."""
        if self._is_busy or self._closed or not self._gathering.keys:
            return
        self._is_busy = True
        try:
            self._limiter.acquire_on_behalf_of_nowait(self)
        except trio.WouldBlock:
            self._queued.set()
        else:
            self._start()

    def expect_answer(self, until: float) -> None:
        """End a wait at this time (trio time). One timer serves all waits."""
        if until < self._overdue.deadline:
            self._overdue.deadline = until

    def _end_overdue_waits(self) -> None:
        now = trio.current_time()
        with self._lock:
            batches = self._gathering, self._running
        self._overdue = trio.CancelScope()
        for batch in batches:
            if batch is not None:
                self.expect_answer(batch.end_waits(now))

    def _start(self) -> None:
        token = trio.lowlevel.current_trio_token()
        self._in_thread = True

        def finish(_outcome: object) -> None:
            with suppress(trio.RunFinishedError):  # it was closed without waiting for the query
                token.run_sync_soon(self._finish)

        try:
            trio.lowlevel.start_thread_soon(self._answer, finish)
        except Exception as failure:  # no thread is available
            self._take_keys().failure = failure
            self._finish()

    def _take_keys(self) -> _Batch[K, V]:
        with self._lock:
            self._running, self._gathering = self._gathering, _Batch()
            return self._running

    def _answer(self) -> None:
        """Query in the thread."""
        batch = self._take_keys()
        try:
            batch.found = self._query(list(batch.keys))
            batch.failure = None
        except Exception as failure:
            # The failure goes to the lookups of this query only; the next query may succeed.
            batch.failure = failure

    def _finish(self) -> None:
        """Let the lookups of a query continue, and start the next query."""
        self._limiter.release_on_behalf_of(self)
        self._is_busy = self._in_thread = False
        batch, self._running = self._running, None
        assert batch is not None
        batch.answer()
        if self._closed:
            self._ended.set()
        else:
            self.begin()

    async def run(self) -> None:
        """Serve until cancelled, and wait for a query that runs. Lookups that still wait then fail."""
        try:
            while True:
                with self._overdue:
                    await self._queued.wait()
                    await self._limiter.acquire_on_behalf_of(self)
                    self._queued = trio.Event()
                    self._start()
                self._end_overdue_waits()
        finally:
            self._closed = True
            self._gathering.answer()
            with trio.move_on_after(_CLOSE_S, shield=True):
                if self._in_thread:
                    await self._ended.wait()
