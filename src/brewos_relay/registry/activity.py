"""Activity: the history of a device, with the user of each entry."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, exists, func, insert, or_, select

from brewos_relay.registry.records import Activity, StoredActivity
from brewos_relay.registry.schema import activity, device_users, devices
from brewos_relay.texts import USER_ID_CHARS

KEPT_MS: Final = 90 * 24 * 3600 * 1000
KEPT_PER_DEVICE: Final = 5000

_IDS_AT_ONCE: Final = 500
_GREATEST_ID: Final = 2**63 - 1

_OF_DEVICE: Final = (
    select(activity)
    .where(activity.c.device_id == bindparam("of_device"))
    .where(activity.c.id < bindparam("before_id"))
    .order_by(activity.c.id.desc())
    .limit(bindparam("limit"))
)

_encode_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_KNOWN: Final = (
    select(devices.c.id)
    .where(devices.c.id.in_(bindparam("ids", expanding=True)))
    .where(or_(~devices.c.registered_itself, exists().where(device_users.c.device_id == devices.c.id)))
)


_TURNS: Final = ("online", "offline")
_RECORDED_AGAIN_MS: Final = 75 * 60_000
"""A server records once an hour which devices are online."""
_NUMBERS: Final[Mapping[str, type[int] | type[float]]] = {
    "code": int,
    "connectedS": float,
    "dropped": int,
    "merged": int,
    "messages": int,
    "roundTripMs": float,
    "throttledS": float,
    "until": int,
}


def add_activity(db: Connection, entries: Sequence[Activity]) -> None:
    """Add entries in their order. User ids that are too long are cut."""
    if entries:
        db.execute(insert(activity), [_row(entry) for entry in entries])


def add_activity_of_known(db: Connection, entries: Sequence[Activity]) -> None:
    """Add the entries of devices that have users or were added by hand.

    Anyone can register and connect other devices, and some may have been removed meanwhile.
    """
    ids = list({entry.device_id for entry in entries})
    there: set[str] = set()
    for start in range(0, len(ids), _IDS_AT_ONCE):
        there.update(db.scalars(_KNOWN, {"ids": ids[start : start + _IDS_AT_ONCE]}))
    add_activity(db, [entry for entry in entries if entry.device_id in there])


def activity_of(
    db: Connection, device_id: str, *, before_id: int | None = None, limit: int = 100
) -> list[StoredActivity]:
    """List the newest entries of a device, newest first; `before_id` starts at older ones."""
    parameters = {
        "of_device": device_id,
        "before_id": _GREATEST_ID if before_id is None else before_id,
        "limit": limit,
    }
    return [_stored(row) for row in db.execute(_OF_DEVICE, parameters)]


def present_devices(db: Connection, *, now_ms: int) -> dict[str, bool]:
    """Return whether each device is online, as far as it was recorded.

    Connections of devices without users are not recorded. A server that was killed records no end of a
    connection, so the device counts as offline when it was not seen for more than an hour.
    """
    last = select(func.max(activity.c.id)).where(activity.c.kind.in_(_TURNS)).group_by(activity.c.device_id)
    rows = db.execute(
        select(activity.c.device_id, activity.c.kind, devices.c.last_seen_ms)
        .join_from(activity, devices, devices.c.id == activity.c.device_id)
        .where(activity.c.id.in_(last))
    )
    return {
        device_id: kind == "online" and seen_ms is not None and now_ms - seen_ms < _RECORDED_AGAIN_MS
        for device_id, kind, seen_ms in rows
    }


def forget_activity(db: Connection, *device_ids: str) -> None:
    """Delete the activity of devices, like when their users change."""
    db.execute(delete(activity).where(activity.c.device_id.in_(device_ids)))


def _row(entry: Activity) -> dict[str, Any]:
    return {
        "device_id": entry.device_id,
        "at_ms": entry.at_ms,
        "kind": entry.kind,
        "user_id": None if entry.user_id is None else _storable(entry.user_id),
        "detail": _encode_json(dict(entry.detail)),
    }


def _storable(user_id: str) -> str:
    # A token can name any user id. A malformed one must not make the insert of all entries fail.
    return user_id[:USER_ID_CHARS].replace("\0", "?").encode(errors="replace").decode()


def _stored(row: Sequence[Any]) -> StoredActivity:
    id_, device_id, at_ms, kind, user_id, detail = row
    return StoredActivity(
        id=id_,
        device_id=device_id,
        at_ms=at_ms,
        kind=kind,
        user_id=user_id,
        detail={name: _as_number(name, each) for name, each in json.loads(detail).items()},
    )


def _as_number(name: str, value: str | int | float) -> str | int | float:
    """Return a detail as it is written now: earlier versions stored numbers as texts."""
    kind = _NUMBERS.get(name)
    if kind is None or not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        return value
