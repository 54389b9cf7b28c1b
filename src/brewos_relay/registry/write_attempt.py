"""WriteAttempt: one write of a running server, with a deadline."""

import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import trio

from brewos_relay.errors import RegistryBusy

T = TypeVar("T")

_MAY_BE_DONE: Final = "the registry did not confirm the change in time: it may have been made"


class WriteAttempt:
    """Runs a write in a worker thread until a deadline, and decides whether commit or deadline came first.

    The deadline includes the queue for a thread and all lock waits. A write that is abandoned before its
    commit is rolled back, however late its thread gets there.

    A cancellation ends the wait in the queue at once. Later, only the end of the write or the deadline does.
    An abandoned thread keeps its place until it ends: the attempt is its limiter.
    """

    def __init__(self, limiter: trio.CapacityLimiter, *, within_s: float) -> None:
        """Start the clock. An earlier deadline of the caller takes precedence."""
        now = trio.current_time()
        self._limiter = limiter
        self._deadline = min(now + within_s, trio.current_effective_deadline())
        self._until_s = time.monotonic() + self._deadline - now
        self._thread_has_place = False
        self._deciding = threading.Lock()
        self._committing = False
        self._given_up = False
        self._results: list[Any] = []

    async def run(self, write: Callable[[], T]) -> T:
        """Call `write` in a thread. Raises its errors, and RegistryBusy at the deadline."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.move_on_at(self._deadline):
            await self._limiter.acquire_on_behalf_of(self)
            try:
                with trio.move_on_at(self._deadline, shield=True):
                    # Trio accepts any limiter with these two methods, but its types accept only its own.
                    limiter = cast("trio.CapacityLimiter", self)
                    return await trio.to_thread.run_sync(
                        self._call, write, limiter=limiter, abandon_on_cancel=True
                    )
            finally:
                if not self._thread_has_place:
                    self._limiter.release_on_behalf_of(self)
        with self._deciding:
            self._given_up = True
            if self._results:  # it completed at this moment
                result: T = self._results[0]
                return result
            if self._committing:
                raise RegistryBusy(_MAY_BE_DONE, undone=False)
        raise self._busy()

    def left_s(self) -> float:
        """Return the remaining time. Raises RegistryBusy if there is none. Called in the thread."""
        left_s = self._until_s - time.monotonic()
        if self._given_up or left_s <= 0:
            raise self._busy()
        return left_s

    def before_commit(self) -> None:
        """Reserve the commit. Raises RegistryBusy after the deadline. Called in the thread."""
        with self._deciding:
            self.left_s()
            self._committing = True

    def not_committed(self) -> None:
        """Record that the commit failed and changed nothing. Called in the thread."""
        with self._deciding:
            self._committing = False

    async def acquire_on_behalf_of(self, _borrower: object) -> None:
        """Pass the place in the queue to the thread; see `trio.to_thread.run_sync`."""
        self._thread_has_place = True

    def release_on_behalf_of(self, _borrower: object) -> None:
        """Return the place at the end of the thread; see `trio.to_thread.run_sync`."""
        self._limiter.release_on_behalf_of(self)

    def _call(self, write: Callable[[], T]) -> T:
        result = write()
        with self._deciding:
            self._results.append(result)
        return result

    @staticmethod
    def _busy() -> RegistryBusy:
        return RegistryBusy("the registry is busy, and nothing was changed")
