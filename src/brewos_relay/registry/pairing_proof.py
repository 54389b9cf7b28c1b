"""Proof: which of two machines with one id connects, and whose the device is then.

Anybody can register a key for an id, and claim the device with the token that they registered. A claim of a
machine that registered itself is *unproven* until a machine has come to the WebSocket with its key:

- It expires a day after it was made.
- A machine with another key takes precedence if it has come to the WebSocket and its token is claimed.
- The claim that gave way comes back if its own machine connects before its day is over. So a stranger who
  connects first gains nothing for good: between two machines that connect, the earlier claim counts.

Nothing of this applies to a machine that has connected, nor to keys from the command line or from before
these rules.
"""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, func, select, update

from brewos_relay.errors import DeviceUnknown
from brewos_relay.registry.access import current_users, give, lock_account, release, release_from
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.changes import note_change
from brewos_relay.registry.device_keys import replace_key, works
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.notices import add_notices
from brewos_relay.registry.records import Access, Activity, Device
from brewos_relay.registry.schema import claims, device_users, devices

UNPROVEN_CLAIM_MS: Final = 24 * 3600 * 1000
"""How long a claim lasts without a machine that connects."""
UNPROVEN_PER_ACCOUNT: Final = 5
"""How many machines that never connected one account may own."""

EXPIRED_AT_ONCE: Final = 50

_SEEN_AT: Final = (
    select(func.max(claims.c.seen_at_ms))
    .where(claims.c.device_id == bindparam("of_device"))
    .where(claims.c.key_hash == bindparam("key"))
)


def confirm_key(db: Connection, device_id: str, key_hash: bytes) -> None:
    """Note that a machine has come with a device's key, which proves the claim of its owner."""
    device = _find(db, device_id)
    if device is not None and device.unproven_since_ms is not None and works(device, key_hash):
        trust_key(db, device_id)


def trust_key(db: Connection, device_id: str) -> None:
    """Treat a device as proven, as when the one who runs the server says whose it is."""
    db.execute(update(devices).where(devices.c.id == device_id).values(unproven_since_ms=None))


def is_of_interest(device: Device, key_hash: bytes) -> bool:
    """Tell whether it matters that a machine comes with this key, which does not work for the device."""
    return device.unproven_since_ms is not None or device.former_key_hash == key_hash


def came_with_other_key(db: Connection, device_id: str, key_hash: bytes, *, now_ms: int) -> bool:
    """Note that a machine has come to the WebSocket with a key that does not work.

    True if it works from now on, since the device went back to an earlier claim.
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


def is_noted(db: Connection, device: Device, key_hash: bytes) -> bool:
    """Tell whether `came_with_other_key` would change nothing, which needs no write to find out."""
    if device.former_key_hash == key_hash:
        return False
    waiting = select(claims.c.seen_at_ms).where(
        claims.c.device_id == device.id, claims.c.key_hash == key_hash, claims.c.used_by.is_(None)
    )
    return all(seen_at_ms is not None for seen_at_ms in db.scalars(waiting))


def seen_at(db: Connection, device_id: str, key_hash: bytes) -> int | None:
    """Tell when a machine came with this key, as noted with any of its tokens; None if none has."""
    seen_at_ms: int | None = db.scalar(_SEEN_AT, {"of_device": device_id, "key": key_hash})
    return seen_at_ms


def count_unproven(db: Connection, user_id: str, *, but: str) -> int:
    """Count the machines that a user owns and that never connected, without one of them."""
    mine = select(func.count()).join_from(device_users, devices, devices.c.id == device_users.c.device_id)
    mine = mine.where(device_users.c.user_id == user_id, device_users.c.role == "owner")
    return db.scalar(mine.where(devices.c.unproven_since_ms.is_not(None), devices.c.id != but)) or 0


def expire_pairing(db: Connection, device: Device, *, now_ms: int) -> bool:
    """Release a locked device whose claim is over since no machine connected; tell whether it was."""
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
    """Release the devices whose claims are over; True if there may be more of them."""
    over = select(devices.c.id).join_from(devices, device_users, devices.c.id == device_users.c.device_id)
    over = over.where(devices.c.unproven_since_ms.is_not(None), device_users.c.role == "owner")
    over = over.where(device_users.c.claimed_at_ms <= now_ms - UNPROVEN_CLAIM_MS)
    ids = db.scalars(over.distinct().order_by(devices.c.id).limit(EXPIRED_AT_ONCE)).all()
    expired = 0
    for device_id in ids:
        # Again, now that nobody else changes it: its machine may have connected.
        device = _find(db, device_id)
        expired += device is not None and expire_pairing(db, device, now_ms=now_ms)
    return len(ids) == EXPIRED_AT_ONCE and expired > 0


def take_over(
    db: Connection, device: Device, key_hash: bytes, *, user_id: str, has: Mapping[str, Access], now_ms: int
) -> None:
    """Give a locked device, whose machine never connected, to the user whose machine has.

    What it was before is kept beside it until the day of that claim is over. `has` are its users.
    """
    former = _first_owner(has)
    until_ms = _ends_at(has)
    note_change(db, "owner_changed", device_id=device.id, now_ms=now_ms)
    add_notices(db, _owners(has) - {user_id}, "lost_to_machine", device_id=device.id, now_ms=now_ms)
    release_from(db, device.id, has, now_ms=now_ms)
    add_activity(db, [_owner_changed(device.id, user_id, now_ms)])
    replace_key(db, device, key_hash, user_id=user_id, now_ms=now_ms)
    kept = {
        "former_key_hash": device.key_hash if former else None,
        "former_user_id": former,
        "former_until_ms": until_ms,
        # Its machine has connected.
        "unproven_since_ms": None,
    }
    db.execute(update(devices).where(devices.c.id == device.id).values(kept))
    add_notices(db, [user_id], "won_by_machine", device_id=device.id, now_ms=now_ms)


def reinstate(db: Connection, device_id: str, key_hash: bytes, *, now_ms: int) -> bool:
    """Give a device back to the earlier claim, as its machine connects; False if that is over.

    Its day has to last, and its user has to be there still.
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
    note_change(db, "owner_changed", device_id=device_id, now_ms=now_ms)
    add_notices(db, _owners(has) - {user_id}, "lost_to_machine", device_id=device_id, now_ms=now_ms)
    release_from(db, device_id, has, now_ms=now_ms)
    add_activity(db, [_owner_changed(device_id, user_id, now_ms)])
    replace_key(db, device, key_hash, user_id=user_id, now_ms=now_ms)
    give(db, device_id, user_id, role="owner", now_ms=now_ms)
    _forget_former(db, device_id)
    add_notices(db, [user_id], "won_by_machine", device_id=device_id, now_ms=now_ms)
    return True


def release_device(db: Connection, device_id: str, *, now_ms: int) -> int:
    """Take a device from everybody and for good, because an administrator says so; give how many had it.

    Its key stays until a machine registers another one. Raises DeviceUnknown.
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
    """Tell when the claim of the first owner ends without a machine; None if it has no such end."""
    first = _first_owner(has)
    claimed_at_ms = None if first is None else has[first].claimed_at_ms
    return None if claimed_at_ms is None else claimed_at_ms + UNPROVEN_CLAIM_MS


def _forget_former(db: Connection, device_id: str) -> None:
    nothing = dict.fromkeys(("former_key_hash", "former_user_id", "former_until_ms"))
    db.execute(update(devices).where(devices.c.id == device_id).values(nothing))
