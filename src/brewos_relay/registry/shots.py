"""Shots: what the machines of a registry have brewed, a limited number of each."""

import json
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, exists, func, insert, or_, select

from brewos_relay.registry.records import Shot
from brewos_relay.registry.schema import device_users, devices, shots

SHOTS_AT_ONCE: Final = 50
"""How many shots are written in one transaction, so that other writers get their turn."""
PROFILE_BYTES_AT_MOST: Final = 32 * 1024
"""Shots with a larger profile are not stored. Half a minute has 1 KiB."""

_GREATEST: Final = 2**63 - 1
_FIRST_CLAIM_MS: Final = (
    select(func.min(device_users.c.claimed_at_ms))
    .where(device_users.c.device_id == devices.c.id)
    .scalar_subquery()
)
_KNOWN: Final = select(devices.c.id, func.coalesce(_FIRST_CLAIM_MS, 0)).where(
    devices.c.id.in_(bindparam("ids", expanding=True)),
    or_(~devices.c.registered_itself, exists().where(device_users.c.device_id == devices.c.id)),
)
_SINCE_MS: Final = select(func.min(device_users.c.claimed_at_ms)).where(
    device_users.c.device_id == bindparam("of_device")
)
_WITHOUT_PROFILE: Final = (
    shots.c.id,
    shots.c.device_id,
    shots.c.began_at_ms,
    shots.c.duration_ms,
    shots.c.is_complete,
    shots.c.summary,
)
_OF_DEVICE: Final = (
    select(*_WITHOUT_PROFILE)
    .where(shots.c.device_id == bindparam("of_device"))
    .where(shots.c.id < bindparam("before_id"))
    .where(shots.c.began_at_ms >= bindparam("from_ms"), shots.c.began_at_ms < bindparam("until_ms"))
    .order_by(shots.c.id.desc())
    .limit(bindparam("limit"))
)
_ONE: Final = select(*_WITHOUT_PROFILE, shots.c.profile).where(
    shots.c.device_id == bindparam("of_device"), shots.c.id == bindparam("id")
)
_FIRST_TOO_MANY: Final = (
    select(shots.c.id)
    .where(shots.c.device_id == bindparam("of_device"))
    .order_by(shots.c.id.desc())
    .offset(bindparam("kept"))
    .limit(1)
)

_encode_json: Final = json.JSONEncoder(separators=(",", ":")).encode


def add_shots(db: Connection, added: Sequence[Shot], *, kept: int) -> None:
    """Store shots in their order. Of each device, only the `kept` newest ones stay.

    Only of devices that have users or were added by hand: anyone can register others. A shot from before the
    device got its present users is not theirs, and not stored.
    """
    since_ms = present_users_since(db, sorted({shot.device_id for shot in added}))
    rows = [
        _row(shot)
        for shot in added
        if len(shot.profile) <= PROFILE_BYTES_AT_MOST
        and shot.began_at_ms >= since_ms.get(shot.device_id, _GREATEST)
    ]
    if rows:
        db.execute(insert(shots), rows)
    for device_id in sorted({row["device_id"] for row in rows}):
        last = db.scalar(_FIRST_TOO_MANY, {"of_device": device_id, "kept": kept})
        if last is not None:
            db.execute(delete(shots).where(shots.c.device_id == device_id, shots.c.id <= last))


def present_users_since(db: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Return since when devices have their present users, in ms since the epoch; 0 if that is not known.

    Without the devices that have no users and registered themselves.
    """
    return {row[0]: row[1] for row in db.execute(_KNOWN, {"ids": ids})}


def users_since_ms(db: Connection, device_id: str) -> int:
    """Return since when a device has its present users, in ms since the epoch; 0 if that is not known."""
    return int(db.scalar(_SINCE_MS, {"of_device": device_id}) or 0)


def shots_of(
    db: Connection,
    device_id: str,
    *,
    before_id: int | None = None,
    from_ms: int | None = None,
    until_ms: int | None = None,
    limit: int = 100,
) -> list[Shot]:
    """List the shots of a device, newest first, without their profiles.

    `before_id` starts at older ones; `from_ms` and `until_ms` limit when they began.
    """
    parameters = {
        "of_device": device_id,
        "before_id": _GREATEST if before_id is None else before_id,
        "from_ms": -_GREATEST if from_ms is None else from_ms,
        "until_ms": _GREATEST if until_ms is None else until_ms,
        "limit": limit,
    }
    return [_shot((*row, b"")) for row in db.execute(_OF_DEVICE, parameters)]


def find_shot(db: Connection, device_id: str, shot_id: int) -> Shot | None:
    """Find a shot of a device, with its profile."""
    row = db.execute(_ONE, {"of_device": device_id, "id": shot_id}).one_or_none()
    return _shot(row) if row is not None else None


def delete_shot(db: Connection, device_id: str, shot_id: int) -> bool:
    """Delete a shot of a device. False if there is none."""
    found = delete(shots).where(shots.c.device_id == device_id, shots.c.id == shot_id)
    return db.execute(found).rowcount > 0


def forget_shots(db: Connection, *device_ids: str) -> None:
    """Delete the shots of devices, like when they get other users."""
    db.execute(delete(shots).where(shots.c.device_id.in_(device_ids)))


def _row(shot: Shot) -> dict[str, Any]:
    return {
        "device_id": shot.device_id,
        "began_at_ms": shot.began_at_ms,
        "duration_ms": shot.duration_ms,
        "is_complete": shot.is_complete,
        "summary": _encode_json(dict(shot.summary)),
        "profile": shot.profile,
    }


def _shot(row: Sequence[Any]) -> Shot:
    id_, device_id, began_at_ms, duration_ms, is_complete, summary, profile = row
    return Shot(
        id=id_,
        device_id=device_id,
        began_at_ms=began_at_ms,
        duration_ms=duration_ms,
        is_complete=is_complete,
        summary=json.loads(summary),
        profile=profile,
    )
