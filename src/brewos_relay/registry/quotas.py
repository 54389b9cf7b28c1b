"""Quotas: how many machines one account may have."""

from typing import Any

from sqlalchemy import Connection, Select, func, or_, select

from brewos_relay.errors import QuotaReached
from brewos_relay.registry.schema import device_users, users


def check_quota(
    db: Connection, user_id: str, *, limit: int, now_ms: int, device_id: str | None = None
) -> None:
    """Raise QuotaReached if a user already has `limit` machines; call it before the user gets one more.

    Machines of every role count, and access that has ended does not. `device_id` names the machine that is
    about to be given: a user who has it already gets no further machine, so that passes.

    The account stays locked until the transaction ends. Two transactions cannot both take its last place.
    """
    db.execute(select(users.c.id).where(users.c.id == user_id).with_for_update(key_share=True)).all()
    has = _count_of(user_id, now_ms)
    if device_id is not None and db.scalar(has.where(device_users.c.device_id == device_id)):
        return
    if (db.scalar(has) or 0) >= limit:
        raise QuotaReached(limit)


def machine_count(db: Connection, user_id: str, *, now_ms: int) -> int:
    """Count the machines that a user has, in whatever role."""
    count: int | None = db.scalar(_count_of(user_id, now_ms))
    return count or 0


def _count_of(user_id: str, now_ms: int) -> Select[Any]:
    not_over = or_(device_users.c.until_ms.is_(None), device_users.c.until_ms > now_ms)
    return select(func.count()).where(device_users.c.user_id == user_id, not_over)
