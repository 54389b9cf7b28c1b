"""Lists for administrators: all devices with their owners, and totals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    exists,
    func,
    literal,
    or_,
    select,
    union_all,
)

from brewos_relay.registry.devices import device_of
from brewos_relay.registry.ordering import ordered
from brewos_relay.registry.records import Device
from brewos_relay.registry.schema import device_users, devices, users

DeviceSort: TypeAlias = Literal["id", "name", "lastSeen"]
DeviceFilter: TypeAlias = Literal["all", "unowned", "newKey"]

_SORTS: Final[Mapping[str, ColumnElement[Any]]] = {
    "id": devices.c.id,
    "name": func.lower(func.coalesce(devices.c.name, "")),
    "lastSeen": func.coalesce(devices.c.last_seen_ms, 0),
}
_OWNED: Final = select(device_users.c.device_id).where(device_users.c.role == "owner")
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
    db: Connection,
    *,
    find: str = "",
    owner: str = "",
    only: DeviceFilter = "all",
    sort: DeviceSort = "id",
    descending: bool = False,
    after: str = "",
    limit: int,
) -> list[DeviceOverview]:
    """List devices, sorted by a column and then by id: at most `limit`, after the device `after`.

    Those without a name, and those that were never seen, come first. `find` limits the list to devices with
    this text in their id or name, in any case, and `owner` to those of an owner, a user id or an address.
    """
    query = select(devices).limit(limit)
    query = ordered(query, _SORTS[sort], devices.c.id, descending=descending, after=after)
    if owner:
        account = select(users.c.id).where(users.c.email == owner.lower())
        ids = union_all(account, select(literal(owner)))  # with OR, databases read the owners of all devices
        query = query.where(devices.c.id.in_(_OWNED.where(device_users.c.user_id.in_(ids))))
    if only == "unowned":
        query = query.where(~exists(_OWNED.where(device_users.c.device_id == devices.c.id)))
    elif only == "newKey":
        query = query.where(devices.c.key_pending_since_ms.is_not(None))
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
