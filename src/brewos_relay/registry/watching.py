"""The task that tells a running server of changes, whoever made them."""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from brewos_relay.errors import RegistryError
from brewos_relay.registry.changes import READ_AT_ONCE
from brewos_relay.registry.records import Change

POLL_S: Final = 0.25
"""How long a change waits to be read, at the longest."""

APPLIED_AT_ONCE: Final = 100
"""How many changes are applied before the next look for the end of a session."""

_ENDS: Final = frozenset({"session_ended", "token_revoked", "user_removed"})

Apply = Callable[[Sequence[Change]], Awaitable[None]]

logger = logging.getLogger(__name__)


class _Look:
    """One look at what has changed, for those who wait until it is done with."""

    def __init__(self) -> None:
        self.done = trio.Event()
        # Stays for those whose look never came to its end.
        self.failure: Exception | None = RegistryError("the registry is closed")


class Watcher:
    """Looks for changes a few times a second, or when asked to, and hands them on one batch after another.

    What ends sessions goes first, and does not wait for other changes, however many of them there are.
    """

    def __init__(self, read: Callable[[], Awaitable[Sequence[Change]]]) -> None:
        self._read = read
        self._apply: Apply | None = None
        self._next = _Look()
        self._next_ends = _Look()
        self._wanted = trio.Event()
        self._failing = False
        self._closed = False

    def watch(self, apply: Apply) -> None:
        """Hand every change to `apply` from now on, also those made between the opening and now."""
        self._apply = apply
        self._wanted.set()

    async def catch_up(self, *, ends_only: bool = False) -> None:
        """Wait until everything that is committed by now is applied; at once if nothing watches.

        With `ends_only`, until every end of a session is.

        Raises RegistryError if the registry cannot be read.
        """
        if self._apply is None:
            return
        if self._closed:
            raise RegistryError("the registry is closed")
        look = self._next_ends if ends_only else self._next
        self._wanted.set()
        await look.done.wait()
        if look.failure is not None:
            raise RegistryError(str(look.failure)) from look.failure

    async def run(self) -> None:
        """Look for changes until cancelled, from when something watches."""
        try:
            await self._wanted.wait()
            while True:
                self._wanted = trio.Event()
                look, self._next = self._next, _Look()
                try:
                    await self._look(look)
                finally:
                    look.done.set()
                with trio.move_on_after(POLL_S):
                    await self._wanted.wait()
        finally:
            self._closed = True
            self._next.done.set()
            self._next_ends.done.set()

    async def _look(self, look: _Look) -> None:
        """Read and apply until nothing is left, and read again between two batches."""
        rest: deque[Change] = deque()
        ends: list[_Look] = []
        failure: Exception | None = None
        try:
            while True:
                ends.append(self._next_ends)
                self._next_ends = _Look()
                found, problem = await self._read_some()
                urgent = [change for change in found if change.kind in _ENDS]
                rest.extend(change for change in found if change.kind not in _ENDS)
                problem = problem or await self._hand_on(urgent)
                failure = failure or problem
                if len(found) >= READ_AT_ONCE:
                    continue
                while ends:
                    ends[-1].failure = problem
                    ends.pop().done.set()
                batch = [rest.popleft() for _ in range(min(APPLIED_AT_ONCE, len(rest)))]
                failure = failure or await self._hand_on(batch)
                if not rest:
                    look.failure = failure
                    return
        finally:
            for each in ends:
                each.done.set()

    async def _read_some(self) -> tuple[Sequence[Change], Exception | None]:
        try:
            found = await self._read()
        except Exception as failure:  # also no more threads: the next look may well succeed
            if not self._failing:
                logger.warning("changes cannot be followed: %s; trying again", failure)
            self._failing = True
            return (), failure
        self._failing = False
        return found, None

    async def _hand_on(self, batch: Sequence[Change]) -> Exception | None:
        if batch and self._apply is not None:
            try:
                await self._apply(batch)
            except Exception as failure:
                # The server goes on: a change that it cannot take must not keep it from taking the next.
                logger.exception("changes could not be applied")
                return failure
        return None
