"""Pairing: a machine shows a token, and the user who presents it gets the machine.

| Who pairs | The token's key works | The token's key is another |
| --- | --- | --- |
| Any user, a device without users | becomes an owner | becomes an owner; the key becomes the device's |
| An owner | stays an owner | the key becomes the device's |
| Another user | becomes a member | is refused, unless its machine connected and the owner's never did |
| Any user, a device with users and without owners | becomes an owner | as above |

A token works once, for the first user who presents it; that user gets the same answer on a retry. Tokens are
found by their hashes. A machine that reports another key than the stored one is not trusted, since ids can be
guessed. The proof is that an owner presents the token that the machine shows. `registry.pairing_proof`
describes what a pairing is worth before any machine has connected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, insert, update
from sqlalchemy.exc import IntegrityError

from brewos_relay.errors import DeviceUnknown, TooManyUnproven
from brewos_relay.registry.access import current_users, give, lock_account
from brewos_relay.registry.activity import add_activity, forget_activity
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.daily_usage import forget_usage
from brewos_relay.registry.device_keys import (
    forget_pending,
    record_pending,
    replace_key,
    replace_unowned_key,
    works,
)
from brewos_relay.registry.device_states import forget_state
from brewos_relay.registry.devices import lock_device, set_name
from brewos_relay.registry.pairing_limits import NewDeviceRules, check_quota, check_window, count_new_id
from brewos_relay.registry.pairing_proof import (
    UNPROVEN_PER_ACCOUNT,
    count_unproven,
    expire_pairing,
    take_over,
)
from brewos_relay.registry.pairing_tokens import add_token, change_token, find_token, keep_token, tokens_of
from brewos_relay.registry.records import Access, Activity, Device, PairingResult, check_name
from brewos_relay.registry.schema import devices
from brewos_relay.registry.shots import forget_shots
from brewos_relay.vocabulary import Role

Registered = Literal["stored", "refreshed", "replaced", "pending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPairing:
    """A token that a device with a working key registered while the registry could not be written."""

    device_id: str
    key_hash: bytes
    token_hash: bytes
    expires_at_ms: int
    networks: Sequence[str]


_NO_RULES: Final = NewDeviceRules(per_network=None)


def register_pairing(
    db: Connection,
    *,
    device_id: str,
    key_hash: bytes,
    token_hash: bytes,
    now_ms: int,
    expires_at_ms: int,
    networks: Sequence[str] = ("",),
    rules: NewDeviceRules = _NO_RULES,
) -> Registered:
    """Register a token that a machine shows, or a stranger in its name. Repeating it changes nothing.

    `stored`: the device was unknown, and now has this key. `refreshed`: the key works already. `replaced`:
    the device has no users, and now has this key. `pending`: the device has users and keeps its key; an owner
    must present the token to make this key the device's.

    `networks` are the caller's network and those around it, the widest first. Raises PairingClosed for an
    unknown id, and for a new key of a device without users; TooManyNewDevices for an unknown id.
    """
    device = _lock(db, device_id)
    if device is None:
        check_window(db, rules.mode, now_ms=now_ms)
        if rules.per_network is not None:
            count_new_id(db, networks, per_network=rules.per_network, now_ms=now_ms)
        if _add_device(db, device_id, key_hash, now_ms=now_ms):
            add_token(db, device_id, key_hash, token_hash, expires_at_ms, networks[-1], seen_at_ms=None)
            return "stored"
        device = lock_device(db, device_id)  # a concurrent registration of this id was faster
    if expire_pairing(db, device, now_ms=now_ms):
        device = lock_device(db, device_id)
    outcome: Registered
    if works(device, key_hash):
        outcome = "refreshed"
        # The machine still has its key: a stranger registered the other key.
        forget_pending(db, device)
    elif current_users(db, device_id, now_ms=now_ms):
        outcome = "pending"
        _notify_of_pending(db, device, now_ms=now_ms)
    else:
        outcome = "replaced"
        check_window(db, rules.mode, now_ms=now_ms)
        device = replace_unowned_key(db, device, key_hash, now_ms=now_ms)
    keep_token(
        db, device, key_hash, token_hash, networks=networks, now_ms=now_ms, expires_at_ms=expires_at_ms
    )
    return outcome


def register_held_pairings(db: Connection, held: Sequence[HeldPairing], *, now_ms: int) -> None:
    """Register held tokens, unless they have expired or their key has ended."""
    for each in held:
        device = _lock(db, each.device_id)
        if each.expires_at_ms > now_ms and device is not None and works(device, each.key_hash):
            register_pairing(
                db,
                device_id=each.device_id,
                key_hash=each.key_hash,
                token_hash=each.token_hash,
                now_ms=now_ms,
                expires_at_ms=each.expires_at_ms,
                networks=each.networks,
            )


def pair_device(
    db: Connection,
    *,
    device_id: str,
    token_hash: bytes,
    user_id: str,
    name: str | None,
    now_ms: int,
    machines_at_most: int | None = None,
    held: Sequence[HeldPairing] = (),
) -> PairingResult | None:
    """Give a user the device that shows this token. None if the token is not valid for that.

    `name` becomes the device's name if the user owns it; raises ValueError if it is invalid. Activity of a
    device without users is deleted: its next owner must not see it. With `machines_at_most`, raises
    QuotaReached for a user who has that many devices, and TooManyUnproven. `held` tokens of the device are
    registered first.
    """
    if name is not None:
        check_name(name)
    lock_account(db, user_id)
    register_held_pairings(db, held, now_ms=now_ms)
    # Always look up both, so that neither the answer nor its time reveals which one is wrong.
    device = _lock(db, device_id)
    token = find_token(db, device_id, token_hash)
    if device is None or token is None or token.expires_at_ms <= now_ms:
        return None
    expired = token.used_by is None and expire_pairing(db, device, now_ms=now_ms)
    users = current_users(db, device_id, now_ms=now_ms)
    before = users.get(user_id)
    if token.used_by is not None:
        # A used token gives no access: an owner may have removed the user since.
        return _answer(device.name, before) if before and token.used_by == user_id else None
    if expired:
        device = lock_device(db, device_id)
    owned = any(each.role == "owner" for each in users.values())
    owns = before is not None and before.role == "owner"
    good = works(device, token.key_hash)
    takes_over = False
    if users and not good and not owns:
        takes_over = _has_precedence(device, token)
        if not takes_over:
            return None
    role: Role = "member" if owned and not owns and not takes_over else "owner"
    if not owns:
        _check_quotas(db, device, user_id, role=role, machines_at_most=machines_at_most, now_ms=now_ms)
    if takes_over:
        take_over(db, device, token.key_hash, user_id=user_id, has=users, now_ms=now_ms)
    db.execute(change_token(device_id, token_hash).values(used_by=user_id))
    if not users:
        forget_activity(db, device_id)
        forget_state(db, device_id)
        forget_shots(db, device_id)
        forget_usage(db, device_id)
    # Before the entries that follow from it.
    entry = Activity(
        device_id=device_id, at_ms=now_ms, kind="claimed", user_id=user_id, detail={"role": role}
    )
    add_activity(db, [entry])
    key_changed = takes_over
    if owns and good:
        forget_pending(db, device)
    elif owns:
        key_changed = replace_key(db, device, token.key_hash, user_id=user_id, now_ms=now_ms)
    elif not users:
        key_changed = _give_key(db, device, token, user_id=user_id, now_ms=now_ms)
    if not owns:
        give(db, device_id, user_id, role=role, now_ms=now_ms)
    if name is not None and role == "owner":
        set_name(db, device_id, name, now_ms=now_ms, by_user_id=user_id)
    return _answer(
        name if name is not None and role == "owner" else None if takes_over else device.name,
        Access(user_id=user_id, device_id=device_id, role=role),
        key_changed=key_changed,
    )


def _has_precedence(device: Device, token: Row[Any]) -> bool:
    """Tell whether the token's machine has connected, and the machine of the device's users never has."""
    return device.unproven_since_ms is not None and token.seen_at_ms is not None


def _check_quotas(
    db: Connection, device: Device, user_id: str, *, role: Role, machines_at_most: int | None, now_ms: int
) -> None:
    if machines_at_most is None:
        return
    check_quota(db, user_id, limit=machines_at_most, now_ms=now_ms, device_id=device.id)
    is_unproven = role == "owner" and device.unproven_since_ms is not None
    if is_unproven and count_unproven(db, user_id, but=device.id) >= UNPROVEN_PER_ACCOUNT:
        raise TooManyUnproven(UNPROVEN_PER_ACCOUNT)


def _give_key(db: Connection, device: Device, token: Row[Any], *, user_id: str, now_ms: int) -> bool:
    """Make a token's key the key of a device without users. Tells whether the key changed."""
    if not replace_key(db, device, token.key_hash, user_id=user_id, now_ms=now_ms):
        return False
    since_ms = now_ms if token.seen_at_ms is None else None
    db.execute(update(devices).where(devices.c.id == device.id).values(unproven_since_ms=since_ms))
    return True


def _lock(db: Connection, device_id: str) -> Device | None:
    try:
        return lock_device(db, device_id)
    except DeviceUnknown:
        return None


def _answer(device_name: str | None, access: Access, *, key_changed: bool = False) -> PairingResult:
    return PairingResult(
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
            db.execute(insert(devices), {**row, "registered_itself": True, "unproven_since_ms": now_ms})
    except IntegrityError:
        return False
    return True


def _notify_of_pending(db: Connection, device: Device, *, now_ms: int) -> None:
    """Notify a device's owners that another key is pending, once for several attempts."""
    waiting = tokens_of(db, device.id, now_ms=now_ms)
    if device.key_pending_since_ms is None or all(works(device, row.key_hash) for row in waiting):
        publish_change(db, "key_pending", device_id=device.id, now_ms=now_ms)
        add_activity(db, [Activity(device_id=device.id, at_ms=now_ms, kind="key_pending")])
    record_pending(db, device, now_ms=now_ms)
