"""What the registry does not keep for ever."""

from typing import Final

from sqlalchemy import Connection, delete, exists, func, select

from brewos_relay.registry import activity as activity_module
from brewos_relay.registry.schema import (
    activity,
    changes,
    claims,
    device_users,
    devices,
    invites,
    refresh_tokens,
    sessions,
    shares,
)

CHANGES_KEPT_MS: Final = 3600 * 1000
UNUSED_DEVICES_KEPT_MS: Final = 30 * 24 * 3600 * 1000


def prune(db: Connection, *, now_ms: int) -> None:
    """Delete what is over: sessions, refresh tokens, invites, claims, shares, access until a time.

    Also old activity, changes that every running server has seen long ago, and devices that registered
    themselves, that nobody took in a month and that never connected.
    """
    for table in (sessions, refresh_tokens, invites, claims, shares):
        db.execute(delete(table).where(table.c.expires_at_ms <= now_ms))
    db.execute(delete(device_users).where(device_users.c.until_ms <= now_ms))
    db.execute(delete(changes).where(changes.c.at_ms <= now_ms - CHANGES_KEPT_MS))
    _prune_activity(db, now_ms=now_ms)
    # Whoever was added by hand waits for its machine for as long as it takes. Nor does a device go that
    # somebody has, or that may be about to be claimed.
    db.execute(
        delete(devices)
        .where(devices.c.registered_itself)
        .where(devices.c.last_seen_ms.is_(None))
        .where(devices.c.created_at_ms <= now_ms - UNUSED_DEVICES_KEPT_MS)
        .where(~exists().where(device_users.c.device_id == devices.c.id))
        .where(~exists().where(claims.c.device_id == devices.c.id))
    )


def _prune_activity(db: Connection, *, now_ms: int) -> None:
    db.execute(delete(activity).where(activity.c.at_ms <= now_ms - activity_module.KEPT_MS))
    kept = activity_module.KEPT_PER_DEVICE
    crowded = select(activity.c.device_id).group_by(activity.c.device_id).having(func.count() > kept)
    for device_id in db.scalars(crowded).all():
        of_device = activity.c.device_id == device_id
        newest_too_many = (
            select(activity.c.id).where(of_device).order_by(activity.c.id.desc()).offset(kept).limit(1)
        )
        db.execute(
            delete(activity).where(of_device).where(activity.c.id <= newest_too_many.scalar_subquery())
        )
