"""The reading side of the change feed: each server reads committed changes and applies them."""

import logging
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio
from sqlalchemy import Connection, bindparam, or_, select

from brewos_relay.errors import RegistryError
from brewos_relay.registry.records import Change
from brewos_relay.registry.schema import changes

POLL_S: Final = 0.25
"""How long a change waits to be read at most."""

APPLIED_AT_ONCE: Final = 100
"""How many changes are applied before the next read, which may find the end of a session."""

_ENDS: Final = frozenset({"session_ended", "token_revoked", "user_removed"})

Apply = Callable[[Sequence[Change]], Awaitable[None]]

logger = logging.getLogger(__name__)


_CHANGES: Final = select(changes).order_by(changes.c.id)
_SOME_AFTER: Final = _CHANGES.where(changes.c.id > bindparam("after_id")).limit(bindparam("at_most"))
_IDS: Final = select(changes.c.id).order_by(changes.c.id)

READ_AT_ONCE: Final = 1000
"""How many changes are read in one query."""

GAPS_AT_MOST: Final = 100
GAP_S: Final = 600.0
"""How many ranges of skipped ids are read again, and for how long."""


@dataclass(slots=True)
class _Gap:
    """A range of ids that have not been seen, and when they were first missed."""

    first: int
    last: int
    since_s: float


class ChangeReader:
    """Reads each change that is committed after the reader was created, exactly once.

    An id is assigned when a row is written, and a row becomes visible when its transaction commits. So with
    several writers, rows may appear below ids that were read already. Skipped ids are read again for a while.
    """

    def __init__(self, db: Connection) -> None:
        self._last_id = 0
        self._gaps: list[_Gap] = []
        self._see(list(db.scalars(_IDS)))

    def read(self, db: Connection) -> list[Change]:
        """Read at most `READ_AT_ONCE` changes committed since the last call, in the order of their ids."""
        self._forget_old_gaps()
        if self._gaps:
            new = changes.c.id > self._last_id
            missed = (changes.c.id.between(gap.first, gap.last) for gap in self._gaps)
            query = _CHANGES.where(or_(new, *missed)).limit(READ_AT_ONCE)
            found = [_change(row) for row in db.execute(query)]
        else:  # the usual case, several times a second
            some = {"after_id": self._last_id, "at_most": READ_AT_ONCE}
            found = [_change(row) for row in db.execute(_SOME_AFTER, some)]
        self._see([change.id for change in found])
        return found

    def _see(self, ids: Sequence[int]) -> None:
        """Record ids, in their order. Each is in a gap or beyond the last id."""
        last_id = max([self._last_id, *ids[-1:]])
        gaps = [*self._gaps, _Gap(self._last_id + 1, last_id, time.monotonic())]
        self._gaps = [rest for gap in gaps for rest in _without(gap, ids)][-GAPS_AT_MOST:]
        self._last_id = last_id

    def _forget_old_gaps(self) -> None:
        # Rows that are still missing were rolled back or deleted.
        before_s = time.monotonic() - GAP_S
        self._gaps = [gap for gap in self._gaps if gap.since_s > before_s]


def _without(gap: _Gap, ids: Sequence[int]) -> Iterator[_Gap]:
    """Yield the rest of a gap without these ids, which are sorted."""
    first = gap.first
    for id_ in ids[bisect_left(ids, gap.first) : bisect_right(ids, gap.last)]:
        if first < id_:
            yield _Gap(first, id_ - 1, gap.since_s)
        first = id_ + 1
    if first <= gap.last:
        yield _Gap(first, gap.last, gap.since_s)


def _change(row: Sequence[Any]) -> Change:
    id_, at_ms, kind, device_id, user_id, session_id, token_id = row
    return Change(
        id=id_,
        at_ms=at_ms,
        kind=kind,
        device_id=device_id,
        user_id=user_id,
        session_id=session_id,
        token_id=token_id,
    )


class _Look:
    """One round of reading and applying changes, with its waiters."""

    def __init__(self) -> None:
        self.done = trio.Event()
        # Stays if the round never completes.
        self.failure: Exception | None = RegistryError("the registry is closed")


class ChangeWatcher:
    """Reads changes a few times a second, or on request, and applies them one batch after another.

    Changes that end sessions go first and do not wait for other changes, however many there are.
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
        """Pass every change to `apply` from now on, including changes made since the store was opened."""
        self._apply = apply
        self._wanted.set()

    def read_now(self) -> None:
        """Read changes without waiting for the next time. Does nothing before `watch` is called."""
        if self._apply is not None:
            self._wanted.set()

    async def catch_up(self, *, ends_only: bool = False) -> None:
        """Wait until all changes committed by now are applied. Returns at once if nothing watches.

        With `ends_only`, wait for the changes that end sessions only. Raises RegistryError if the registry
        cannot be read.
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
        """Read and apply changes until cancelled. Starts when `watch` is called."""
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
        """Read and apply until no change is left, with a read between two batches."""
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
        except Exception as failure:  # even if no thread can be started: the next round may succeed
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
                # Go on: a change that cannot be applied must not stop the ones after it.
                logger.exception("changes could not be applied")
                return failure
        return None
