"""Device keys: what a machine may prove itself with, and how one key follows another.

A key that was sent to a machine works at once, and so does every one before it, until the machine has come
back with it. So a machine that loses a new key, ignores it, or keeps it but fails before it says so is never
locked out.
"""

import hmac
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, update

from brewos_relay.errors import DeviceUnknown, TooManyKeys
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.changes import note_change
from brewos_relay.registry.device_states import forget_state
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.records import Activity, Device
from brewos_relay.registry.schema import claims, devices

NOBODY: Final = ""
"""Who a token was used by that is good for nobody any more; no user's id is empty."""

NEXT_KEYS_AT_MOST: Final = 5
"""How many keys may be on their way to one machine."""


def works(device: Device, key_hash: bytes) -> bool:
    """Tell whether a device may use this key: it is its key, or one of those that were sent to it."""
    return _any_equals((device.key_hash, *device.next_key_hashes), key_hash)


def gets_no_more_keys(device: Device) -> bool:
    """Tell whether as many keys are on their way to a device as may be, and it has used none of them."""
    return len(device.next_key_hashes) >= NEXT_KEYS_AT_MOST


def add_next_key(
    db: Connection, device_id: str, key_hash: bytes, *, now_ms: int, user_id: str | None = None
) -> None:
    """Let a device use a key besides those that it may use; to be committed before the key is sent to it.

    `user_id` is who asked for it. Raises TooManyKeys while the device has used none of the last five, and
    DeviceUnknown.
    """
    device = lock_device(db, device_id)
    if works(device, key_hash):
        return
    # None is forgotten to make room: it could be the one that the machine has kept.
    if gets_no_more_keys(device):
        raise TooManyKeys(device_id, NEXT_KEYS_AT_MOST)
    _write(db, device_id, next_key_hashes=b"".join((*device.next_key_hashes, key_hash)))
    add_activity(db, [Activity(device_id=device_id, at_ms=now_ms, kind="key_sent", user_id=user_id)])


def drop_next_key(db: Connection, device_id: str, key_hash: bytes) -> None:
    """Forget a key that was never sent after all; nothing happens if the device is using it by now."""
    device = lock_device(db, device_id)
    kept = [one for one in device.next_key_hashes if one != key_hash]
    if len(kept) < len(device.next_key_hashes):
        _write(db, device_id, next_key_hashes=b"".join(kept) or None)


def use_next_key(db: Connection, device_id: str, key_hash: bytes, *, now_ms: int) -> bool:
    """Make a key that was sent to a device its key, as the device came with it; those before it end.

    Tells whether it is the device's key now: it may have been that already, or not be any more.
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
    """Make a key the device's key because a user says so; tell whether it was another one before.

    Whatever was registered with a key that ends here is worth nothing any more, nor is the note that a key
    waits for an owner.
    """
    if _any_equals([device.key_hash], key_hash):
        forget_pending(db, device)
        return False
    _put(db, device, key_hash)
    forget_state(db, device.id)  # another machine's, as far as is known
    note_change(db, "key_changed", device_id=device.id, now_ms=now_ms)
    add_activity(db, [Activity(device_id=device.id, at_ms=now_ms, kind="key_changed", user_id=user_id)])
    return True


def replace_unowned_key(db: Connection, device: Device, key_hash: bytes, *, now_ms: int) -> Device:
    """Make a key the key of a device that nobody has. Claims stay: any one may be the machine's own.

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
    note_change(db, "key_changed", device_id=device.id, now_ms=now_ms)
    return replace(
        device,
        key_hash=key_hash,
        next_key_hashes=(),
        key_pending_since_ms=None,
        unproven_since_ms=now_ms,
    )


def note_pending(db: Connection, device: Device, *, now_ms: int) -> None:
    """Remember since when another key waits for an owner's claim."""
    if device.key_pending_since_ms is None:
        _write(db, device.id, key_pending_since_ms=now_ms)


def forget_pending(db: Connection, device: Device) -> None:
    """Forget that another key waits for an owner's claim."""
    if device.key_pending_since_ms is not None:
        _write(db, device.id, key_pending_since_ms=None)


def end_pairing_tokens(db: Connection, *device_ids: str, but_of_keys: Collection[bytes] = ()) -> None:
    """End the tokens that were registered for devices until now, unless with one of these keys.

    Ended ones are kept: what a machine goes on showing must not be registered again by a stranger, with
    another key.
    """
    ended = update(claims).where(claims.c.device_id.in_(device_ids))
    db.execute(ended.where(claims.c.key_hash.not_in(but_of_keys)).values(used_by=NOBODY))


def _put(db: Connection, device: Device, key_hash: bytes) -> None:
    # Keys that were sent after this one may still be on their way. If it was not sent, none of those that
    # were sent is the machine's: it has made a key of its own.
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
    # Not `in`, whose time tells how many bytes are right; and all of them, whichever it is.
    return sum(hmac.compare_digest(each, wanted) for each in hashes) > 0
