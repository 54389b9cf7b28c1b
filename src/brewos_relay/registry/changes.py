"""What running servers have to act on, whoever changed it: this process, another one, a command line."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, or_, select

from brewos_relay.registry.records import Change, ChangeKind
from brewos_relay.registry.schema import changes

_CHANGES: Final = select(changes).order_by(changes.c.id)
_AFTER: Final = _CHANGES.where(changes.c.id > bindparam("after_id"))
_AFTER_AND_LATE: Final = _CHANGES.where(
    or_(changes.c.id > bindparam("after_id"), changes.c.id.in_(bindparam("late_ids", expanding=True)))
)
_IDS: Final = (
    select(changes.c.id)
    .where(changes.c.id > bindparam("after_id"))
    .where(changes.c.id <= bindparam("last_id"))
)
_LAST_ID: Final = select(func.max(changes.c.id))

LATE_AT_MOST: Final = 100
LATE_S: Final = 600.0
"""How many ids that were jumped over are looked for again, and for how long."""


def note_change(
    db: Connection,
    kind: ChangeKind,
    *,
    device_id: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    now_ms: int,
) -> None:
    """Tell running servers about a change, once the transaction that makes it is committed."""
    row = {
        "at_ms": now_ms,
        "kind": kind,
        "device_id": device_id,
        "user_id": user_id,
        "session_id": session_id,
    }
    db.execute(insert(changes), row)


def read_changes(db: Connection, after_id: int) -> list[Change]:
    """Read the changes with greater ids, in the order of their ids."""
    return [_change(row) for row in db.execute(_AFTER, {"after_id": after_id})]


class ChangeFollower:
    """Reads each change that is committed after it was made, once.

    Ids are given out when a row is written, and a row is seen when its transaction ends. So where there are
    several writers, an id may appear after a greater one: those that were jumped over are looked for again.
    """

    def __init__(self, db: Connection) -> None:
        self._last_id: int = db.execute(_LAST_ID).scalar_one() or 0
        first_id = max(self._last_id - LATE_AT_MOST, 0) + 1
        there = set(db.scalars(_IDS, {"after_id": first_id - 1, "last_id": self._last_id}))
        # When each of them was first missed, in the order of that.
        self._late_since_s: dict[int, float] = {}
        self._look_for(id_ for id_ in range(first_id, self._last_id) if id_ not in there)

    def read(self, db: Connection) -> list[Change]:
        """Read what was committed since the last time, in the order of the ids."""
        late = self._late_since_s
        if not late:
            found = read_changes(db, self._last_id)
        else:
            rows = db.execute(_AFTER_AND_LATE, {"after_id": self._last_id, "late_ids": list(late)})
            found = [_change(row) for row in rows]
        for change in found:
            if change.id > self._last_id:
                self._look_for(range(max(self._last_id + 1, change.id - LATE_AT_MOST), change.id))
                self._last_id = change.id
            else:
                del late[change.id]
        self._give_up()
        return found

    def _look_for(self, ids: Iterable[int]) -> None:
        now_s = time.monotonic()
        self._late_since_s.update(dict.fromkeys(ids, now_s))

    def _give_up(self) -> None:
        late = self._late_since_s
        before_s = time.monotonic() - LATE_S
        for id_ in list(late):
            if len(late) <= LATE_AT_MOST and late[id_] > before_s:
                return
            del late[id_]


def _change(row: Sequence[Any]) -> Change:
    id_, at_ms, kind, device_id, user_id, session_id = row
    return Change(id=id_, at_ms=at_ms, kind=kind, device_id=device_id, user_id=user_id, session_id=session_id)
