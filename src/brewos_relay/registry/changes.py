"""What running servers have to act on, whoever changed it: this process, another one, a command line."""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, or_, select

from brewos_relay.registry.records import Change, ChangeKind
from brewos_relay.registry.schema import changes

_CHANGES: Final = select(changes).order_by(changes.c.id)
_AFTER: Final = _CHANGES.where(changes.c.id > bindparam("after_id"))
_SOME_AFTER: Final = _AFTER.limit(bindparam("at_most"))
_IDS: Final = select(changes.c.id).order_by(changes.c.id)

READ_AT_ONCE: Final = 1000
"""How many changes are read in one go."""

GAPS_AT_MOST: Final = 100
GAP_S: Final = 600.0
"""How many ranges of ids that were jumped over are looked into again, and for how long."""


def note_change(
    db: Connection,
    kind: ChangeKind,
    *,
    device_id: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    token_id: str | None = None,
    now_ms: int,
) -> None:
    """Tell running servers about a change, once the transaction that makes it is committed."""
    row = {
        "at_ms": now_ms,
        "kind": kind,
        "device_id": device_id,
        "user_id": user_id,
        "session_id": session_id,
        "token_id": token_id,
    }
    db.execute(insert(changes), row)


def note_ended_sessions(db: Connection, pairs: Sequence[tuple[str, str]], *, now_ms: int) -> None:
    """Tell running servers that sessions have ended: pairs of session id and user id."""
    if pairs:
        rows = [
            {"at_ms": now_ms, "kind": "session_ended", "session_id": session_id, "user_id": user_id}
            for session_id, user_id in pairs
        ]
        db.execute(insert(changes), rows)


def note_changed_access(db: Connection, pairs: Sequence[tuple[str, str]], *, now_ms: int) -> None:
    """Tell running servers that the access of users to devices changed: pairs of device id and user id."""
    if pairs:
        rows = [
            {"at_ms": now_ms, "kind": "access_changed", "device_id": device_id, "user_id": user_id}
            for device_id, user_id in pairs
        ]
        db.execute(insert(changes), rows)


def read_changes(db: Connection, after_id: int) -> list[Change]:
    """Read the changes with greater ids, in the order of their ids."""
    return [_change(row) for row in db.execute(_AFTER, {"after_id": after_id})]


@dataclass(slots=True)
class _Gap:
    """Ids that have not been seen, from the first to the last, and when they were first missed."""

    first: int
    last: int
    since_s: float


class ChangeFollower:
    """Reads each change that is committed after it was made, once.

    Ids are given out when a row is written, and a row is seen when its transaction ends. So where there are
    several writers, ids may appear after greater ones, many of them if much was changed in one go: what was
    jumped over is looked into again.
    """

    def __init__(self, db: Connection) -> None:
        self._last_id = 0
        self._gaps: list[_Gap] = []
        self._see(list(db.scalars(_IDS)))

    def read(self, db: Connection) -> list[Change]:
        """Read what was committed since the last time, in the order of the ids: at most `READ_AT_ONCE`."""
        self._forget_old_gaps()
        if self._gaps:
            new = changes.c.id > self._last_id
            missed = (changes.c.id.between(gap.first, gap.last) for gap in self._gaps)
            query = _CHANGES.where(or_(new, *missed)).limit(READ_AT_ONCE)
            found = [_change(row) for row in db.execute(query)]
        else:  # nearly always, and several times a second
            some = {"after_id": self._last_id, "at_most": READ_AT_ONCE}
            found = [_change(row) for row in db.execute(_SOME_AFTER, some)]
        self._see([change.id for change in found])
        return found

    def _see(self, ids: Sequence[int]) -> None:
        """Take note of ids in their order: each is in a gap, or beyond the last one."""
        last_id = max([self._last_id, *ids[-1:]])
        gaps = [*self._gaps, _Gap(self._last_id + 1, last_id, time.monotonic())]
        self._gaps = [rest for gap in gaps for rest in _without(gap, ids)][-GAPS_AT_MOST:]
        self._last_id = last_id

    def _forget_old_gaps(self) -> None:
        # What is missed for so long was undone, or deleted.
        before_s = time.monotonic() - GAP_S
        self._gaps = [gap for gap in self._gaps if gap.since_s > before_s]


def _without(gap: _Gap, ids: Sequence[int]) -> Iterator[_Gap]:
    """Give what is left of a gap without these ids, which are in order."""
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
