"""Device keys: the keys that a device may use, and how a new key replaces an old one.

A key that was sent to a device works at once. All earlier keys go on working until the device has connected
with the new one. So a device is never locked out: not if it loses a new key, ignores it, or fails before it
confirms it.
"""

import hmac
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, update

from brewos_relay.errors import DeviceUnknown, TooManyKeys
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.device_states import forget_state
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.records import Activity, Device
from brewos_relay.registry.schema import claims, devices

ENDED_TOKEN: Final = ""
"""The `used_by` of pairing tokens that have ended. No user has an empty id."""

NEXT_KEYS_AT_MOST: Final = 5
"""How many keys may be on their way to one device."""


def works(device: Device, key_hash: bytes) -> bool:
    """Tell whether a device may use this key: its current key, or one that was sent to it."""
    return _any_equals((device.key_hash, *device.next_key_hashes), key_hash)


def gets_no_more_keys(device: Device) -> bool:
    """Tell whether the maximum number of keys is on its way to a device that has used none of them."""
    return len(device.next_key_hashes) >= NEXT_KEYS_AT_MOST


def add_next_key(
    db: Connection, device_id: str, key_hash: bytes, *, now_ms: int, user_id: str | None = None
) -> None:
    """Allow a device to use another key. Commit this before the key is sent.

    `user_id` is the user who requested it. Raises TooManyKeys while the device has used none of the last
    five, and DeviceUnknown.
    """
    device = lock_device(db, device_id)
    if works(device, key_hash):
        return
    # Never drop one to make room: it could be the key that the device has stored.
    if gets_no_more_keys(device):
        raise TooManyKeys(device_id, NEXT_KEYS_AT_MOST)
    _write(db, device_id, next_key_hashes=b"".join((*device.next_key_hashes, key_hash)))
    add_activity(db, [Activity(device_id=device_id, at_ms=now_ms, kind="key_sent", user_id=user_id)])


def drop_next_key(db: Connection, device_id: str, key_hash: bytes) -> None:
    """Remove a key that was not sent after all. Does nothing if the device uses it already."""
    device = lock_device(db, device_id)
    kept = [one for one in device.next_key_hashes if one != key_hash]
    if len(kept) < len(device.next_key_hashes):
        _write(db, device_id, next_key_hashes=b"".join(kept) or None)


def use_next_key(db: Connection, device_id: str, key_hash: bytes, *, now_ms: int) -> bool:
    """Make a sent key the device's key, because the device connected with it. Earlier keys end.

    Tells whether it is the device's key now. It may have been before, or may have ended.
    """
    try:
        device = lock_device(db, device_id)
    except DeviceUnknown:
        return False
    if not works(device, key_hash):
        return False
    if not _any_equals([device.key_hash], key_hash):
        _put(db, device, key_hash)
        add_activity(db, [Activity(device_id=device_id, at_ms=now_ms, kind="key_changed")])
    return True


def replace_key(db: Connection, device: Device, key_hash: bytes, *, user_id: str, now_ms: int) -> bool:
    """Make a key the device's key because a user paired it. Tells whether the key changed.

    Pairing tokens with keys that end here become invalid, and the pending key is forgotten.
    """
    if _any_equals([device.key_hash], key_hash):
        forget_pending(db, device)
        return False
    _put(db, device, key_hash)
    forget_state(db, device.id)  # it may be the state of another machine
    publish_change(db, "key_changed", device_id=device.id, now_ms=now_ms)
    add_activity(db, [Activity(device_id=device.id, at_ms=now_ms, kind="key_changed", user_id=user_id)])
    return True


def replace_unowned_key(db: Connection, device: Device, key_hash: bytes, *, now_ms: int) -> Device:
    """Make a key the key of a device without users. Pairing tokens stay: any may be the machine's own.

    No machine has connected with the key yet.
    """
    _write(
        db,
        device.id,
        key_hash=key_hash,
        next_key_hashes=None,
        key_pending_since_ms=None,
        unproven_since_ms=now_ms,
    )
    forget_state(db, device.id)
    publish_change(db, "key_changed", device_id=device.id, now_ms=now_ms)
    return replace(
        device,
        key_hash=key_hash,
        next_key_hashes=(),
        key_pending_since_ms=None,
        unproven_since_ms=now_ms,
    )


def record_pending(db: Connection, device: Device, *, now_ms: int) -> None:
    """Record that another key waits for an owner to pair it, unless one waits already."""
    if device.key_pending_since_ms is None:
        _write(db, device.id, key_pending_since_ms=now_ms)


def forget_pending(db: Connection, device: Device) -> None:
    """Forget that another key waits for an owner to pair it."""
    if device.key_pending_since_ms is not None:
        _write(db, device.id, key_pending_since_ms=None)


def end_pairing_tokens(db: Connection, *device_ids: str, but_of_keys: Collection[bytes] = ()) -> None:
    """End the pairing tokens of devices, except tokens with one of these keys.

    Ended tokens are kept, so that a stranger cannot register the token that a machine still shows with
    another key.
    """
    ended = update(claims).where(claims.c.device_id.in_(device_ids))
    db.execute(ended.where(claims.c.key_hash.not_in(but_of_keys)).values(used_by=ENDED_TOKEN))


def _put(db: Connection, device: Device, key_hash: bytes) -> None:
    # Keys that were sent after this one may still be on their way. If this key was not sent, the machine has
    # made it itself and uses none of the sent keys.
    sent = device.next_key_hashes
    newer = sent[sent.index(key_hash) + 1 :] if key_hash in sent else ()
    _write(
        db,
        device.id,
        key_hash=key_hash,
        next_key_hashes=b"".join(newer) or None,
        key_pending_since_ms=None,
    )
    end_pairing_tokens(db, device.id, but_of_keys=[key_hash, *newer])


def _write(db: Connection, device_id: str, **values: bytes | int | None) -> None:
    db.execute(update(devices).where(devices.c.id == device_id).values(**values))


def _any_equals(hashes: Iterable[bytes], wanted: bytes) -> bool:
    # Constant time, unlike `in`, and always compare with all of them.
    return sum(hmac.compare_digest(each, wanted) for each in hashes) > 0
