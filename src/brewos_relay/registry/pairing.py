"""Pairing: a machine shows a token, and whoever claims it gets the machine.

| Whose claim | The token's key works | The token's key is another |
| --- | --- | --- |
| Anybody's, of a device that nobody has | becomes an owner | becomes an owner; the key becomes the device's |
| An owner's | stays an owner | the key becomes the device's |
| Somebody else's | becomes a member | is refused |
| Somebody's, of a device that has users and no owner | becomes an owner | is refused |

A token works once, for whoever claims it first; they get the same answer when they ask again. Tokens are
found by their hashes alone. A machine that says it has another key than the one on file is not believed: its
id can be guessed. That its owner holds the token that it shows is what proves it.
"""

from typing import Final, Literal

from sqlalchemy import Connection, Update, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from brewos_relay.errors import DeviceUnknown
from brewos_relay.registry.access import current_users, give
from brewos_relay.registry.activity import add_activity, forget_activity
from brewos_relay.registry.changes import note_change
from brewos_relay.registry.devices import lock_device, set_name
from brewos_relay.registry.keys import (
    NOBODY,
    forget_pending,
    note_pending,
    replace_key,
    replace_unowned_key,
    works,
)
from brewos_relay.registry.records import Access, Activity, Claimed, Device, Role, check_name
from brewos_relay.registry.schema import claims, devices
from brewos_relay.registry.sharing import claim_code, claim_share, new_share, revoke_share, shares_of

__all__ = [
    "Registered",
    "claim",
    "claim_code",
    "claim_share",
    "new_share",
    "register_claim",
    "revoke_share",
    "shares_of",
]

Registered = Literal["stored", "refreshed", "replaced", "pending"]

CLAIMS_AT_MOST: Final = 8
"""How many tokens of one device are good at the same time."""

_CLAIM: Final = (
    select(claims)
    .where(claims.c.device_id == bindparam("of_device"))
    .where(claims.c.token_hash == bindparam("token"))
)
_CLAIMS: Final = (
    select(claims)
    .where(claims.c.device_id == bindparam("of_device"))
    .where(claims.c.expires_at_ms > bindparam("now_ms"))
    .order_by(claims.c.expires_at_ms, claims.c.token_hash)
)


def register_claim(
    db: Connection, *, device_id: str, key_hash: bytes, token_hash: bytes, now_ms: int, expires_at_ms: int
) -> Registered:
    """Take a token that a machine, or somebody who says so, shows; doing so again changes nothing.

    `stored`: the device was unknown and has this key now. `refreshed`: the key is one that works.
    `replaced`: nobody has the device, so it has this key now. `pending`: somebody has it and its key stays;
    an owner has to claim the token to make this key the device's.
    """
    device = _lock(db, device_id)
    if device is None:
        if _add_device(db, device_id, key_hash, now_ms=now_ms):
            _add_claim(db, device_id, key_hash, token_hash, expires_at_ms)
            return "stored"
        device = lock_device(db, device_id)  # another machine of this id, or this one twice, was faster
    outcome: Registered
    if works(device, key_hash):
        outcome = "refreshed"
        # The machine is here, and has not lost its key: whoever said that it has another was somebody else.
        forget_pending(db, device)
    elif current_users(db, device_id, now_ms=now_ms):
        outcome = "pending"
        _tell_of_pending(db, device, now_ms=now_ms)
    else:
        outcome = "replaced"
        device = replace_unowned_key(db, device, key_hash, now_ms=now_ms)
    _keep_claim(db, device, key_hash, token_hash, now_ms=now_ms, expires_at_ms=expires_at_ms)
    return outcome


def claim(
    db: Connection, *, device_id: str, token_hash: bytes, user_id: str, name: str | None, now_ms: int
) -> Claimed | None:
    """Give a user the device that shows this token; None if the token is not good for that.

    `name` becomes the device's if the user owns it. ValueError if it cannot be one. What was done with a
    device that nobody has is forgotten: those who had it before are no affair of the next owner's.
    """
    if name is not None:
        check_name(name)
    # Both are asked for, whether or not the first is there: neither answer nor time tells which is wrong.
    device = _lock(db, device_id)
    token = db.execute(_CLAIM, {"of_device": device_id, "token": token_hash}).one_or_none()
    if device is None or token is None or token.expires_at_ms <= now_ms:
        return None
    users = current_users(db, device_id, now_ms=now_ms)
    before = users.get(user_id)
    if token.used_by is not None:
        # Never gives anything: it may have been taken from them since.
        return _answer(device.name, before) if before and token.used_by == user_id else None
    owned = any(each.role == "owner" for each in users.values())
    owns = before is not None and before.role == "owner"
    good = works(device, token.key_hash)
    if users and not good and not owns:
        return None
    db.execute(_same(device_id, token_hash).values(used_by=user_id))
    role: Role = "member" if owned and not owns else "owner"
    if not users:
        forget_activity(db, device_id)
    # Before what comes of it.
    entry = Activity(
        device_id=device_id, at_ms=now_ms, kind="claimed", user_id=user_id, detail={"role": role}
    )
    add_activity(db, [entry])
    key_changed = False
    if owns and good:
        forget_pending(db, device)
    elif owns or not users:
        key_changed = replace_key(db, device, token.key_hash, user_id=user_id, now_ms=now_ms)
    if not owns:
        give(db, device_id, user_id, role=role, now_ms=now_ms)
    if name is not None and role == "owner":
        set_name(db, device_id, name, now_ms=now_ms, by_user_id=user_id)
    return _answer(
        name if name is not None and role == "owner" else device.name,
        Access(user_id=user_id, device_id=device_id, role=role),
        key_changed=key_changed,
    )


def _lock(db: Connection, device_id: str) -> Device | None:
    try:
        return lock_device(db, device_id)
    except DeviceUnknown:
        return None


def _same(device_id: str, token_hash: bytes) -> Update:
    return update(claims).where(claims.c.device_id == device_id, claims.c.token_hash == token_hash)


def _answer(device_name: str | None, access: Access, *, key_changed: bool = False) -> Claimed:
    return Claimed(
        device_id=access.device_id,
        device_name=device_name,
        role=access.role,
        until_ms=access.until_ms,
        key_changed=key_changed,
    )


def _add_device(db: Connection, device_id: str, key_hash: bytes, *, now_ms: int) -> bool:
    try:
        with db.begin_nested():
            row = {"id": device_id, "key_hash": key_hash, "created_at_ms": now_ms}
            db.execute(insert(devices), {**row, "registered_itself": True})
    except IntegrityError:
        return False
    return True


def _tell_of_pending(db: Connection, device: Device, *, now_ms: int) -> None:
    """Tell a device's owners that another key waits, but not once for every try of whoever tries."""
    waiting = db.execute(_CLAIMS, {"of_device": device.id, "now_ms": now_ms}).all()
    if device.key_pending_since_ms is None or all(works(device, row.key_hash) for row in waiting):
        note_change(db, "key_pending", device_id=device.id, now_ms=now_ms)
        add_activity(db, [Activity(device_id=device.id, at_ms=now_ms, kind="key_pending")])
    note_pending(db, device, now_ms=now_ms)


def _keep_claim(
    db: Connection, device: Device, key_hash: bytes, token_hash: bytes, *, now_ms: int, expires_at_ms: int
) -> None:
    there = db.execute(_CLAIM, {"of_device": device.id, "token": token_hash}).one_or_none()
    if there is None:
        _make_room(db, device, good=works(device, key_hash), now_ms=now_ms)
        _add_claim(db, device.id, key_hash, token_hash, expires_at_ms)
        return
    same = _same(device.id, token_hash)
    if there.key_hash == key_hash or (works(device, key_hash) and works(device, there.key_hash)):
        db.execute(same.values(key_hash=key_hash, expires_at_ms=max(there.expires_at_ms, expires_at_ms)))
    elif there.used_by is None:
        # Somebody saw the token, or the machine has made itself another key meanwhile. Neither key may
        # come out of a claim of this token; the machine's next token is good again.
        db.execute(same.values(used_by=NOBODY))


def _make_room(db: Connection, device: Device, *, good: bool, now_ms: int) -> None:
    """Drop the oldest tokens for a new one, but none of a key that works for one of a key that does not."""
    there = db.execute(_CLAIMS, {"of_device": device.id, "now_ms": now_ms}).all()
    ours = [row.token_hash for row in there if works(device, row.key_hash)]
    others = [row.token_hash for row in there if not works(device, row.key_hash)]
    drop: list[bytes] = []
    if good:
        # One place is always left for a machine that has lost its key.
        excess = max(len(ours) + 2 - CLAIMS_AT_MOST, 0)
        ours, drop = ours[excess:], ours[:excess]
    drop += others[: max(len(ours) + len(others) + 1 - CLAIMS_AT_MOST, 0)]
    db.execute(delete(claims).where(claims.c.device_id == device.id, claims.c.token_hash.in_(drop)))


def _add_claim(
    db: Connection, device_id: str, key_hash: bytes, token_hash: bytes, expires_at_ms: int
) -> None:
    row = {
        "device_id": device_id,
        "token_hash": token_hash,
        "key_hash": key_hash,
        "expires_at_ms": expires_at_ms,
    }
    db.execute(insert(claims), row)
