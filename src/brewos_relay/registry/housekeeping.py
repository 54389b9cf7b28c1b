"""What the registry does not keep for ever."""

from typing import Final

from sqlalchemy import Connection, and_, delete, exists, func, or_, select, tuple_

from brewos_relay.registry import activity as activity_module
from brewos_relay.registry import known_networks as known_networks_module
from brewos_relay.registry.devices import IDS_AT_ONCE, chunks
from brewos_relay.registry.notices import NOTICES_KEPT_MS
from brewos_relay.registry.pairing_window import forget_counts
from brewos_relay.registry.proof import expire_claims
from brewos_relay.registry.schema import (
    activity,
    changes,
    claims,
    device_users,
    devices,
    invites,
    known_networks,
    notices,
    redeemed_invites,
    refresh_tokens,
    sessions,
    shares,
    tokens,
)

CHANGES_KEPT_MS: Final = 3600 * 1000
UNUSED_DEVICES_KEPT_MS: Final = 30 * 24 * 3600 * 1000
UNUSED_DEVICES_KEPT: Final = 50_000
DEVICES_AT_ONCE: Final = 10_000
"""How many devices go in one transaction: others want to write as well."""


def prune(db: Connection, *, now_ms: int) -> bool:
    """Delete what is over: sessions, refresh tokens, tokens, invites, claims, shares, access until a time.

    Also claims of machines that never connected, old activity, notices, networks that an account was not
    signed in to from for long, changes that every running server has seen, and devices that registered
    themselves and have no users: those that were not seen for a month, and all but the 50,000 that were seen
    last, since anybody can register as many as they like. True if there are more of these to delete.
    """
    for table in (sessions, refresh_tokens, tokens, invites, redeemed_invites, claims, shares):
        db.execute(delete(table).where(table.c.expires_at_ms <= now_ms))
    db.execute(delete(device_users).where(device_users.c.until_ms <= now_ms))
    unused_since_ms = now_ms - known_networks_module.KEPT_MS
    db.execute(delete(known_networks).where(known_networks.c.seen_at_ms <= unused_since_ms))
    db.execute(delete(changes).where(changes.c.at_ms <= now_ms - CHANGES_KEPT_MS))
    db.execute(delete(notices).where(notices.c.at_ms <= now_ms - NOTICES_KEPT_MS))
    forget_counts(db, now_ms=now_ms)
    _prune_activity(db, now_ms=now_ms)
    more_claims = expire_claims(db, now_ms=now_ms)
    return _prune_devices(db, now_ms=now_ms) or more_claims


def _prune_devices(db: Connection, *, now_ms: int) -> bool:
    # A machine registers whenever it is switched on, so that one that comes back after that is there again.
    # Whoever was added by hand waits for its machine for as long as it takes. Nor does a device go that
    # somebody has, or that may be about to be claimed.
    seen_ms = func.coalesce(devices.c.last_seen_ms, devices.c.created_at_ms)
    unused = and_(
        devices.c.registered_itself,
        ~exists().where(device_users.c.device_id == devices.c.id),
        ~exists().where(claims.c.device_id == devices.c.id),
    )
    # With the id, as machines that are online are seen at the same time.
    newest_first = select(seen_ms, devices.c.id).where(unused).order_by(seen_ms.desc(), devices.c.id.desc())
    first_too_many = db.execute(newest_first.offset(UNUSED_DEVICES_KEPT).limit(1)).one_or_none()
    is_over = seen_ms <= now_ms - UNUSED_DEVICES_KEPT_MS
    if first_too_many is not None:
        is_over = or_(is_over, tuple_(seen_ms, devices.c.id) <= tuple_(*first_too_many))
    some = select(devices.c.id).where(unused).where(is_over).limit(DEVICES_AT_ONCE)
    gone = db.scalars(delete(devices).where(devices.c.id.in_(some)).returning(devices.c.id)).all()
    # Whoever has one of these ids next must not read what others did.
    for ids in chunks(gone, IDS_AT_ONCE):
        db.execute(delete(activity).where(activity.c.device_id.in_(ids)))
    return len(gone) == DEVICES_AT_ONCE


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
