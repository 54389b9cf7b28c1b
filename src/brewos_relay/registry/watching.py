"""The task that tells a running server of changes, whoever made them."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from brewos_relay.errors import RegistryError
from brewos_relay.registry.records import Change

POLL_S: Final = 0.25
"""How long a change waits to be read, at the longest."""

Apply = Callable[[Sequence[Change]], Awaitable[None]]

logger = logging.getLogger(__name__)


class _Look:
    """One look at what has changed, for those who wait until it is done with."""

    def __init__(self) -> None:
        self.done = trio.Event()
        # Stays for those whose look never came to its end.
        self.failure: Exception | None = RegistryError("the registry is closed")


class Watcher:
    """Looks for changes a few times a second, or when asked to, and hands them on one batch after another."""

    def __init__(self, read: Callable[[], Awaitable[Sequence[Change]]]) -> None:
        self._read = read
        self._apply: Apply | None = None
        self._next = _Look()
        self._wanted = trio.Event()
        self._failing = False
        self._closed = False

    def watch(self, apply: Apply) -> None:
        """Hand every change to `apply` from now on, also those made between the opening and now."""
        self._apply = apply
        self._wanted.set()

    async def catch_up(self) -> None:
        """Wait until everything that is committed by now is applied; at once if nobody wants to know.

        Raises RegistryError if the registry cannot be read.
        """
        if self._apply is None:
            return
        if self._closed:
            raise RegistryError("the registry is closed")
        look = self._next
        self._wanted.set()
        await look.done.wait()
        if look.failure is not None:
            raise RegistryError(str(look.failure)) from look.failure

    async def run(self) -> None:
        """Look for changes until cancelled, from when somebody wants to know of them."""
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

    async def _look(self, look: _Look) -> None:
        try:
            found = await self._read()
        except Exception as failure:  # also no more threads: the next look may well succeed
            if not self._failing:
                logger.warning("changes cannot be followed: %s; trying again", failure)
            self._failing = True
            look.failure = failure
            return
        self._failing = False
        if found and self._apply is not None:
            try:
                await self._apply(found)
            except Exception as failure:
                # The server goes on: a change that it cannot take must not keep it from taking the next.
                logger.exception("changes could not be applied")
                look.failure = failure
                return
        look.failure = None
