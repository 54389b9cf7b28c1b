"""Notices to accounts about devices that they lost, or got from another user."""

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, literal, select

from brewos_relay.registry.records import Notice, NoticeKind
from brewos_relay.registry.schema import notices, users

NOTICES_KEPT: Final = 20
"""How many notices one account keeps, the newest."""
NOTICES_KEPT_MS: Final = 90 * 24 * 3600 * 1000

_OF_USER: Final = (
    select(notices.c.id, notices.c.at_ms, notices.c.kind, notices.c.device_id)
    .where(notices.c.user_id == bindparam("of_user"))
    .order_by(notices.c.id.desc())
)


def add_notices(
    db: Connection, user_ids: Iterable[str], kind: NoticeKind, *, device_id: str, now_ms: int
) -> None:
    """Add a notice about a device to accounts. User ids without an account get none."""
    for user_id in user_ids:
        row = select(users.c.id, literal(now_ms), literal(kind), literal(device_id))
        columns = ["user_id", "at_ms", "kind", "device_id"]
        db.execute(insert(notices).from_select(columns, row.where(users.c.id == user_id)))
        too_old = select(notices.c.id).where(notices.c.user_id == user_id)
        too_old = too_old.order_by(notices.c.id.desc()).offset(NOTICES_KEPT).limit(1)
        db.execute(
            delete(notices)
            .where(notices.c.user_id == user_id)
            .where(notices.c.id <= too_old.scalar_subquery())
        )


def notices_of(db: Connection, user_id: str) -> list[Notice]:
    """List the notices of an account, newest first."""
    rows = db.execute(_OF_USER, {"of_user": user_id})
    return [Notice(id=id_, at_ms=at_ms, kind=kind, device_id=device) for id_, at_ms, kind, device in rows]


def dismiss_notices(db: Connection, user_id: str, *, up_to_id: int) -> None:
    """Delete the notices of an account up to this id."""
    db.execute(delete(notices).where(notices.c.user_id == user_id, notices.c.id <= up_to_id))
