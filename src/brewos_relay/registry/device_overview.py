"""Lists for administrators: all devices with their owners, and totals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, func, or_, select

from brewos_relay.registry.devices import device_of
from brewos_relay.registry.records import Device
from brewos_relay.registry.schema import device_users, devices, users

_OWNERS: Final = (
    select(device_users.c.device_id, users.c.email, device_users.c.user_id)
    .join_from(device_users, users, users.c.id == device_users.c.user_id, isouter=True)
    .where(device_users.c.device_id.in_(bindparam("ids", expanding=True)))
    .where(device_users.c.role == "owner")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOverview:
    """A device and its owners: e-mail addresses, or user ids of owners without an account."""

    device: Device
    owners: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The numbers of devices and users in the registry."""

    devices: int
    users: int


def list_device_overviews(
    db: Connection, *, find: str = "", after: str = "", limit: int
) -> list[DeviceOverview]:
    """List devices in the order of their ids: at most `limit`, after the id `after`.

    `find` limits the list to devices with this text in their id or name, in any case.
    """
    query = select(devices).where(devices.c.id > after).order_by(devices.c.id).limit(limit)
    if find:
        columns = (func.lower(devices.c.id), func.lower(devices.c.name))
        query = query.where(or_(*(each.contains(find.lower(), autoescape=True) for each in columns)))
    found = [device_of(row) for row in db.execute(query)]
    owners = _owners_of(db, [device.id for device in found])
    return [DeviceOverview(device=device, owners=tuple(owners.get(device.id, ()))) for device in found]


def totals(db: Connection) -> Totals:
    """Count the devices and users in the registry."""
    device_count = db.scalar(select(func.count()).select_from(devices))
    user_count = db.scalar(select(func.count()).where(users.c.removed_at_ms.is_(None)))
    return Totals(devices=device_count or 0, users=user_count or 0)


def _owners_of(db: Connection, ids: Sequence[str]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for device_id, email, user_id in db.execute(_OWNERS, {"ids": ids}):
        owners.setdefault(device_id, []).append(email or user_id)
    # Databases sort differently: accounts before or after others, and by their own language.
    return {device_id: sorted(each) for device_id, each in owners.items()}
