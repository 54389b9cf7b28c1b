"""What running servers have to act on, whoever changed it: this process, another one, a command line."""

from collections.abc import Sequence

from sqlalchemy import Connection, insert

from brewos_relay.registry.records import ChangeKind
from brewos_relay.registry.schema import changes


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
