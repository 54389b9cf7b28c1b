"""The writing side of the change feed: rows that running servers act on.

A row is written in the transaction of the change that it describes. `change_feed` reads the rows.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, insert

from brewos_relay.registry.records import ChangeKind
from brewos_relay.registry.schema import changes


def publish_change(
    db: Connection,
    kind: ChangeKind,
    *,
    device_id: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    token_id: str | None = None,
    now_ms: int,
) -> None:
    """Notify running servers of a change, once its transaction is committed."""
    row = {
        "at_ms": now_ms,
        "kind": kind,
        "device_id": device_id,
        "user_id": user_id,
        "session_id": session_id,
        "token_id": token_id,
    }
    db.execute(insert(changes), row)


def publish_ended_sessions(db: Connection, pairs: Sequence[tuple[str, str]], *, now_ms: int) -> None:
    """Notify running servers of ended sessions: pairs of session id and user id."""
    if pairs:
        rows = [
            {"at_ms": now_ms, "kind": "session_ended", "session_id": session_id, "user_id": user_id}
            for session_id, user_id in pairs
        ]
        db.execute(insert(changes), rows)


def publish_changed_access(db: Connection, pairs: Sequence[tuple[str, str]], *, now_ms: int) -> None:
    """Notify running servers of changed access: pairs of device id and user id."""
    if pairs:
        rows = [
            {"at_ms": now_ms, "kind": "access_changed", "device_id": device_id, "user_id": user_id}
            for device_id, user_id in pairs
        ]
        db.execute(insert(changes), rows)
