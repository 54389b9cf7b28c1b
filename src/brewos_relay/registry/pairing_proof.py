"""Pairing proof: which of two machines with the same id is genuine, and who owns the device.

Anyone can register a key for any id, and pair the device with the registered token. The pairing of a machine
that registered itself is *unproven* until a machine connects to the WebSocket with its key:

- It expires after a day.
- A machine with another key takes precedence if it has connected and a user presents its token.
- The former pairing is restored if its own machine connects within a day of it. So a stranger who connects
  first gains nothing permanent: between two machines that connect, the earlier pairing wins.

These rules do not apply to machines that have connected, nor to keys from the command line or from before the
rules.
"""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, func, select, update

from brewos_relay.errors import DeviceUnknown
from brewos_relay.registry.access import current_users, give, lock_account, release, release_from
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.device_keys import replace_key, works
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.notices import add_notices
from brewos_relay.registry.records import Access, Activity, Device
from brewos_relay.registry.schema import claims, device_users, devices

UNPROVEN_PAIRING_MS: Final = 24 * 3600 * 1000
"""How long a pairing lasts without a machine that connects."""
UNPROVEN_PER_ACCOUNT: Final = 5
"""How many devices that never connected one account may own."""

EXPIRED_AT_ONCE: Final = 50

_SEEN_AT: Final = (
    select(func.max(claims.c.seen_at_ms))
    .where(claims.c.device_id == bindparam("of_device"))
    .where(claims.c.key_hash == bindparam("key"))
)


def confirm_key(db: Connection, device_id: str, key_hash: bytes) -> None:
    """Record that a machine connected with a device's key, which proves the owner's pairing."""
    device = _find(db, device_id)
    if device is not None and device.unproven_since_ms is not None and works(device, key_hash):
        trust_key(db, device_id)


def trust_key(db: Connection, device_id: str) -> None:
    """Treat a device as proven, because an administrator says whose it is."""
    db.execute(update(devices).where(devices.c.id == device_id).values(unproven_since_ms=None))


def is_of_interest(device: Device, key_hash: bytes) -> bool:
    """Tell whether a connection with this key can change the owner, although the key does not work."""
    return device.unproven_since_ms is not None or device.former_key_hash == key_hash


def connected_with_other_key(db: Connection, device_id: str, key_hash: bytes, *, now_ms: int) -> bool:
    """Record that a machine connected with a key that does not work.

    True if the key works from now on, because the device went back to its former pairing.
    """
    if reinstate(db, device_id, key_hash, now_ms=now_ms):
        return True
    db.execute(
        update(claims)
        .where(claims.c.device_id == device_id, claims.c.key_hash == key_hash)
        .where(claims.c.used_by.is_(None), claims.c.seen_at_ms.is_(None))
        .values(seen_at_ms=now_ms)
    )
    return False


def is_recorded(db: Connection, device: Device, key_hash: bytes) -> bool:
    """Tell whether `connected_with_other_key` has nothing to change, so that no write is needed."""
    if device.former_key_hash == key_hash:
        return False
    waiting = select(claims.c.seen_at_ms).where(
        claims.c.device_id == device.id, claims.c.key_hash == key_hash, claims.c.used_by.is_(None)
    )
    return all(seen_at_ms is not None for seen_at_ms in db.scalars(waiting))


def seen_at(db: Connection, device_id: str, key_hash: bytes) -> int | None:
    """Return when a machine connected with this key, as recorded with its tokens. None if none has."""
    seen_at_ms: int | None = db.scalar(_SEEN_AT, {"of_device": device_id, "key": key_hash})
    return seen_at_ms


def count_unproven(db: Connection, user_id: str, *, but: str) -> int:
    """Count the devices that a user owns and that never connected, without the device `but`."""
    mine = select(func.count()).join_from(device_users, devices, devices.c.id == device_users.c.device_id)
    mine = mine.where(device_users.c.user_id == user_id, device_users.c.role == "owner")
    return db.scalar(mine.where(devices.c.unproven_since_ms.is_not(None), devices.c.id != but)) or 0


def expire_pairing(db: Connection, device: Device, *, now_ms: int) -> bool:
    """Release a device whose pairing expired without a connection. Tells whether it did.

    The caller has locked the device with `lock_device`.
    """
    if device.unproven_since_ms is None:
        return False
    has = current_users(db, device.id, now_ms=now_ms)
    ends_at_ms = _ends_at(has)
    if ends_at_ms is None or ends_at_ms > now_ms:
        return False
    add_notices(db, _owners(has), "claim_expired", device_id=device.id, now_ms=now_ms)
    release(db, device.id, now_ms=now_ms)
    return True


def expire_pairings(db: Connection, *, now_ms: int) -> bool:
    """Release the devices whose pairings have expired. True if there may be more."""
    over = select(devices.c.id).join_from(devices, device_users, devices.c.id == device_users.c.device_id)
    over = over.where(devices.c.unproven_since_ms.is_not(None), device_users.c.role == "owner")
    over = over.where(device_users.c.claimed_at_ms <= now_ms - UNPROVEN_PAIRING_MS)
    ids = db.scalars(over.distinct().order_by(devices.c.id).limit(EXPIRED_AT_ONCE)).all()
    expired = 0
    for device_id in ids:
        # Check again with the row locked: the machine may have connected.
        device = _find(db, device_id)
        expired += device is not None and expire_pairing(db, device, now_ms=now_ms)
    return len(ids) == EXPIRED_AT_ONCE and expired > 0


def take_over(
    db: Connection, device: Device, key_hash: bytes, *, user_id: str, has: Mapping[str, Access], now_ms: int
) -> None:
    """Give a device whose machine never connected to the user whose machine has connected.

    The former pairing is stored, and can be restored within a day of it; see `reinstate`. `has` are the
    current users. The caller has locked the device with `lock_device`.
    """
    former = _first_owner(has)
    until_ms = _ends_at(has)
    publish_change(db, "owner_changed", device_id=device.id, now_ms=now_ms)
    add_notices(db, _owners(has) - {user_id}, "lost_to_machine", device_id=device.id, now_ms=now_ms)
    release_from(db, device.id, has, now_ms=now_ms)
    add_activity(db, [_owner_changed(device.id, user_id, now_ms)])
    replace_key(db, device, key_hash, user_id=user_id, now_ms=now_ms)
    kept = {
        "former_key_hash": device.key_hash if former else None,
        "former_user_id": former,
        "former_until_ms": until_ms,
        # The new owner's machine has connected.
        "unproven_since_ms": None,
    }
    db.execute(update(devices).where(devices.c.id == device.id).values(kept))
    add_notices(db, [user_id], "won_by_machine", device_id=device.id, now_ms=now_ms)


def reinstate(db: Connection, device_id: str, key_hash: bytes, *, now_ms: int) -> bool:
    """Restore the former pairing of a device, because its machine connected.

    False if the former pairing is more than a day old, or its user no longer exists.
    """
    device = _find(db, device_id)
    if device is None or device.former_key_hash != key_hash or device.former_user_id is None:
        return False
    if device.former_until_ms is None or device.former_until_ms <= now_ms:
        return False
    user_id = device.former_user_id
    if not lock_account(db, user_id):
        return False
    has = current_users(db, device_id, now_ms=now_ms)
    publish_change(db, "owner_changed", device_id=device_id, now_ms=now_ms)
    add_notices(db, _owners(has) - {user_id}, "lost_to_machine", device_id=device_id, now_ms=now_ms)
    release_from(db, device_id, has, now_ms=now_ms)
    add_activity(db, [_owner_changed(device_id, user_id, now_ms)])
    replace_key(db, device, key_hash, user_id=user_id, now_ms=now_ms)
    give(db, device_id, user_id, role="owner", now_ms=now_ms)
    _forget_former(db, device_id)
    add_notices(db, [user_id], "won_by_machine", device_id=device_id, now_ms=now_ms)
    return True


def release_device(db: Connection, device_id: str, *, now_ms: int) -> int:
    """Take a device from all users, on an administrator's order. Returns how many users it had.

    Its former pairing ends too. Its key stays until a machine registers another one. Raises DeviceUnknown.
    """
    lock_device(db, device_id)
    has = current_users(db, device_id, now_ms=now_ms)
    add_notices(db, _owners(has), "released", device_id=device_id, now_ms=now_ms)
    release_from(db, device_id, has, now_ms=now_ms)
    _forget_former(db, device_id)
    return len(has)


def _find(db: Connection, device_id: str) -> Device | None:
    try:
        return lock_device(db, device_id)
    except DeviceUnknown:
        return None


def _owner_changed(device_id: str, user_id: str, now_ms: int) -> Activity:
    return Activity(device_id=device_id, at_ms=now_ms, kind="owner_changed", user_id=user_id)


def _owners(has: Mapping[str, Access]) -> set[str]:
    return {user_id for user_id, access in has.items() if access.role == "owner"}


def _first_owner(has: Mapping[str, Access]) -> str | None:
    owners = _owners(has)
    return min(owners, key=lambda user_id: (has[user_id].claimed_at_ms or 0, user_id), default=None)


def _ends_at(has: Mapping[str, Access]) -> int | None:
    """Return when the first owner's pairing expires without a machine. None if it does not."""
    first = _first_owner(has)
    claimed_at_ms = None if first is None else has[first].claimed_at_ms
    return None if claimed_at_ms is None else claimed_at_ms + UNPROVEN_PAIRING_MS


def _forget_former(db: Connection, device_id: str) -> None:
    nothing = dict.fromkeys(("former_key_hash", "former_user_id", "former_until_ms"))
    db.execute(update(devices).where(devices.c.id == device_id).values(nothing))
