"""Devices: registering, finding, locking, renaming and removing them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, and_, bindparam, delete, exists, insert, or_, select, update

from brewos_relay.errors import DeviceExists, DeviceUnknown
from brewos_relay.registry.activity import add_activity, forget_activity
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.records import Activity, Device, NewDevice, check_name
from brewos_relay.registry.schema import device_users, devices, users

T = TypeVar("T")

IDS_AT_ONCE: Final = 500
_ROWS_AT_ONCE: Final = 1000
_KEY_HASH_BYTES: Final = 32
_INFO_CHARS: Final = 50

_DEVICES: Final = select(devices).order_by(devices.c.id)
_HAS_USER: Final = exists().where(device_users.c.device_id == devices.c.id)
_BY_ID: Final = select(devices, and_(devices.c.registered_itself, ~_HAS_USER)).where(
    devices.c.id.in_(bindparam("ids", expanding=True))
)
_ACCOUNTS: Final = select(users.c.id).where(users.c.id.in_(bindparam("ids", expanding=True)))
_LOCKED: Final = select(devices).where(devices.c.id == bindparam("of_device")).with_for_update()
_LOCKED_SOME: Final = (
    select(devices.c.id)
    .where(devices.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(devices.c.id)
    .with_for_update()
)
_RECORD_SEEN: Final = (
    update(devices)
    .where(devices.c.id == bindparam("of_device"))
    .where(or_(devices.c.last_seen_ms.is_(None), devices.c.last_seen_ms < bindparam("at_ms")))
    .values(last_seen_ms=bindparam("at_ms"))
)


def add_devices(
    db: Connection,
    rows: Sequence[NewDevice],
    *,
    now_ms: int,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Register devices and give them to their users, all or none. DeviceExists names the existing ones.

    `on_progress` is called with the number of rows written since the last call.
    """
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        raise DeviceExists(id_ for id_, times in Counter(ids).items() if times > 1)
    # Look first: PostgreSQL refuses reads in a transaction after a failed statement.
    if taken := sorted(device.id for device in find_devices(db, ids)):
        raise DeviceExists(taken)
    for chunk in chunks(rows, _ROWS_AT_ONCE):
        db.execute(insert(devices), [_device_row(row, now_ms) for row in chunk])
        add_device_users(db, [row for new in chunk for row in _user_rows(new, now_ms)])
        if on_progress is not None:
            on_progress(len(chunk))


def add_device_users(db: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows of `device_users`, and link each to the account of its user if the user has one.

    The foreign key then rejects a row whose account is removed at the same time.
    """
    user_ids = sorted({row["user_id"] for row in rows})
    accounts = {
        id_ for chunk in chunks(user_ids, IDS_AT_ONCE) for id_ in db.scalars(_ACCOUNTS, {"ids": chunk})
    }
    bound = [{**row, "account_id": row["user_id"] if row["user_id"] in accounts else None} for row in rows]
    if bound:
        db.execute(insert(device_users), bound)


def remove_device(db: Connection, device_id: str, *, now_ms: int) -> bool:
    """Delete a device, its users and its activity. False if it was not registered."""
    if db.execute(delete(devices).where(devices.c.id == device_id)).rowcount == 0:
        return False
    forget_activity(db, device_id)
    publish_change(db, "device_removed", device_id=device_id, now_ms=now_ms)
    return True


def all_devices(db: Connection) -> list[Device]:
    """List all devices in the order of their ids."""
    return [device_of(row) for row in db.execute(_DEVICES)]


def some_devices(db: Connection, *, after: str = "", limit: int) -> list[Device]:
    """List devices in the order of their ids: at most `limit`, after the id `after`."""
    return [device_of(row) for row in db.execute(_DEVICES.where(devices.c.id > after).limit(limit))]


def find_devices(db: Connection, ids: Sequence[str]) -> list[Device]:
    """Find devices by their ids, in any order. Missing ones are left out."""
    return [
        device_of(row, anonymous=bool(row[-1]))
        for chunk in chunks(ids, IDS_AT_ONCE)
        for row in db.execute(_BY_ID, {"ids": chunk}).all()  # faster than fetching one by one
    ]


def lock_device(db: Connection, device_id: str) -> Device:
    """Read a device and lock it until the transaction ends. Raises DeviceUnknown.

    Lock a device before reading its users, key, pairing tokens or shares in order to change them.
    """
    row = db.execute(_LOCKED, {"of_device": device_id}).first()
    if row is None:
        raise DeviceUnknown(device_id)
    return device_of(row)


def lock_devices(db: Connection, ids: Sequence[str]) -> None:
    """Lock devices until the transaction ends, in the order of their ids. Missing ones are ignored."""
    db.execute(_LOCKED_SOME, {"ids": ids}).all()


def set_name(
    db: Connection, device_id: str, name: str | None, *, now_ms: int, by_user_id: str | None = None
) -> bool:
    """Rename a device. False if it is not registered; raises ValueError for an invalid name."""
    if name is not None:
        check_name(name)
    if db.execute(update(devices).where(devices.c.id == device_id).values(name=name)).rowcount == 0:
        return False
    detail = {} if name is None else {"name": name}
    add_activity(
        db,
        [Activity(device_id=device_id, at_ms=now_ms, kind="renamed", user_id=by_user_id, detail=detail)],
    )
    return True


def record_seen(db: Connection, seen: Mapping[str, int]) -> None:
    """Record when devices were last connected (id → Unix ms). Never replaces a later time."""
    if seen:
        db.execute(_RECORD_SEEN, [{"of_device": id_, "at_ms": at_ms} for id_, at_ms in seen.items()])


def record_info(
    db: Connection, device_id: str, *, firmware_version: str | None, machine_type: str | None
) -> None:
    """Record what a device reports about itself, up to 50 characters each. None changes nothing."""
    said = {"firmware_version": firmware_version, "machine_type": machine_type}
    values = {name: text[:_INFO_CHARS] for name, text in said.items() if text is not None}
    if values:
        differs = or_(*(devices.c[name].is_distinct_from(text) for name, text in values.items()))
        db.execute(update(devices).where(devices.c.id == device_id).where(differs).values(**values))


def device_of(row: Sequence[Any], *, anonymous: bool = False) -> Device:
    """Convert a row of all columns of `devices`. The caller may know whether the device is anonymous."""
    id_, key_hash, name, created_at_ms, last_seen_ms, next_keys, pending_since_ms, *rest = row
    firmware, machine, _itself, unproven_since_ms, former_key, former_user, former_until_ms, *_ = rest
    return Device(
        id=id_,
        key_hash=key_hash,
        name=name,
        created_at_ms=created_at_ms,
        last_seen_ms=last_seen_ms,
        next_key_hashes=() if not next_keys else _hashes(next_keys),
        key_pending_since_ms=pending_since_ms,
        firmware_version=firmware,
        machine_type=machine,
        anonymous=anonymous,
        unproven_since_ms=unproven_since_ms,
        former_key_hash=former_key,
        former_user_id=former_user,
        former_until_ms=former_until_ms,
    )


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split a sequence into chunks of this size; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _hashes(together: bytes) -> tuple[bytes, ...]:
    starts = range(0, len(together), _KEY_HASH_BYTES)
    return tuple(together[start : start + _KEY_HASH_BYTES] for start in starts)


def _device_row(new: NewDevice, now_ms: int) -> dict[str, Any]:
    return {"id": new.id, "key_hash": new.key_hash, "name": new.name, "created_at_ms": now_ms}


def _user_rows(new: NewDevice, now_ms: int) -> Iterator[dict[str, Any]]:
    for user_id in new.user_ids:
        yield {"user_id": user_id, "device_id": new.id, "role": new.role, "claimed_at_ms": now_ms}
