"""Access: the devices of each user, with the role and the end of the access.

Owners have a device for ever; members and viewers for ever or until a time. Every function that reduces
access also notifies running servers in the same transaction.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, Literal

from sqlalchemy import Connection, and_, bindparam, delete, func, literal, or_, select, tuple_, update

from brewos_relay.errors import LastOwner
from brewos_relay.registry.activity import add_activity, forget_activity
from brewos_relay.registry.changes import publish_change, publish_changed_access
from brewos_relay.registry.daily_usage import forget_usage
from brewos_relay.registry.device_keys import end_pairing_tokens
from brewos_relay.registry.device_states import forget_state
from brewos_relay.registry.devices import (
    IDS_AT_ONCE,
    add_device_users,
    chunks,
    device_of,
    lock_device,
    lock_devices,
)
from brewos_relay.registry.records import Access, Activity, ActivityKind, DeviceUser, OwnedDevice
from brewos_relay.registry.schema import device_users, devices, shares, users
from brewos_relay.registry.shots import forget_shots
from brewos_relay.vocabulary import Detail, Role, role_includes

Left = Literal["left", "removed"]

# Access that has ended is no access, even while its row still exists.
_NOT_OVER: Final = or_(device_users.c.until_ms.is_(None), device_users.c.until_ms > bindparam("now_ms"))
_ACCESS: Final = (
    device_users.c.user_id,
    device_users.c.device_id,
    device_users.c.role,
    device_users.c.until_ms,
    device_users.c.claimed_at_ms,
)
_ACCOUNT: Final = (
    select(users.c.id)
    .where(users.c.id == bindparam("of_user"))
    .where(users.c.removed_at_ms.is_(None))
    .with_for_update(read=True, key_share=True)
)
_BY_PAIR: Final = (
    select(*_ACCESS)
    .where(tuple_(device_users.c.user_id, device_users.c.device_id).in_(bindparam("pairs", expanding=True)))
    .where(_NOT_OVER)
)
_OF_DEVICE: Final = (
    select(*_ACCESS).where(device_users.c.device_id == bindparam("of_device")).where(_NOT_OVER)
)
_others = device_users.alias()
_USER_COUNT: Final = (
    select(func.count())
    .select_from(_others)
    .where(_others.c.device_id == devices.c.id)
    .where(or_(_others.c.until_ms.is_(None), _others.c.until_ms > bindparam("now_ms")))
    .scalar_subquery()
)
_DEVICES_OF: Final = (
    select(devices, *_ACCESS, _USER_COUNT)
    .join_from(device_users, devices)
    .where(device_users.c.user_id == bindparam("of_user"))
    .where(_NOT_OVER)
    .order_by(device_users.c.device_id)
)
_SOME_DEVICES: Final = (
    select(device_users.c.device_id)
    .where(device_users.c.user_id == bindparam("of_user"))
    .order_by(device_users.c.device_id)
    .limit(bindparam("at_most"))
)
_OF_DEVICES: Final = (
    select(*_ACCESS)
    .where(device_users.c.device_id.in_(bindparam("ids", expanding=True)))
    .where(_NOT_OVER)
    .order_by(device_users.c.device_id, device_users.c.user_id)
)
_SINCE_MS: Final = func.coalesce(device_users.c.claimed_at_ms, -1)
_USERS_OF: Final = (
    select(*_ACCESS, users.c.email, users.c.name, users.c.picture_url)
    .join_from(
        device_users,
        users,
        and_(users.c.id == device_users.c.user_id, users.c.removed_at_ms.is_(None)),
        isouter=True,
    )
    .where(device_users.c.device_id == bindparam("of_device"))
    .where(_NOT_OVER)
    .order_by(_SINCE_MS, device_users.c.user_id)
)


def lock_account(db: Connection, user_id: str) -> bool:
    """Keep an account from being removed until the transaction ends. False if no account has this id.

    Accounts are locked before devices: see `registry.authority`.
    """
    return db.scalar(_ACCOUNT, {"of_user": user_id}) is not None


def access_of(
    db: Connection, pairs: Sequence[tuple[str, str]], *, now_ms: int
) -> dict[tuple[str, str], Access]:
    """Read the access of pairs of user id and device id. Pairs without access are left out."""
    return {
        (row[0], row[1]): _access(row)
        for chunk in chunks(pairs, IDS_AT_ONCE)
        for row in db.execute(_BY_PAIR, {"pairs": chunk, "now_ms": now_ms})
    }


def devices_of(
    db: Connection,
    user_id: str,
    *,
    after: str = "",
    only: Sequence[str] | None = None,
    limit: int | None = None,
    now_ms: int,
) -> list[OwnedDevice]:
    """List the devices of a user in the order of their ids: at most `limit`, after the id `after`.

    `only` limits the list to these ids.
    """
    query = _DEVICES_OF.where(device_users.c.device_id > after).limit(limit)
    if only is not None:
        query = query.where(device_users.c.device_id.in_(only))
    width = len(devices.columns)
    return [
        OwnedDevice(device=device_of(row[:width]), access=_access(row[width:-1]), user_count=row[-1])
        for row in db.execute(query, {"of_user": user_id, "now_ms": now_ms})
    ]


def users_of(
    db: Connection,
    device_id: str,
    *,
    after: tuple[int, str] | None = None,
    only: str | None = None,
    limit: int | None = None,
    now_ms: int,
) -> list[DeviceUser]:
    """List the users of a device, the earliest access first: at most `limit`.

    `after` is the `claimed_at_ms` and the id of the last user of the previous page; -1 stands for no time.
    `only` limits the list to this user.
    """
    query = _USERS_OF.limit(limit)
    if after is not None:
        query = query.where(tuple_(_SINCE_MS, device_users.c.user_id) > tuple_(*map(literal, after)))
    if only is not None:
        query = query.where(device_users.c.user_id == only)
    rows = db.execute(query, {"of_device": device_id, "now_ms": now_ms})
    return [
        DeviceUser(
            user_id=user_id,
            device_id=device_id,
            role=role,
            until_ms=until_ms,
            claimed_at_ms=claimed_at_ms,
            email=email,
            name=name,
            picture_url=picture_url,
        )
        for user_id, _, role, until_ms, claimed_at_ms, email, name, picture_url in rows
    ]


def give(
    db: Connection, device_id: str, user_id: str, *, role: Role, until_ms: int | None = None, now_ms: int
) -> bool:
    """Give a user access to a device, for ever or until a time. False if the user has as much already.

    Never reduces access: a user who has more in one respect and less in another keeps it unchanged. Raises
    DeviceUnknown, and ValueError for an owner with an end. The caller has validated the user id.
    """
    _check_role(role, until_ms)
    lock_account(db, user_id)
    lock_device(db, device_id)
    had = current_users(db, device_id, now_ms=now_ms).get(user_id)
    new = Access(user_id=user_id, device_id=device_id, role=role, until_ms=until_ms)
    if had is not None and (_covers(had, new) or not _covers(new, had)):
        return False
    _grant(db, new, had, now_ms=now_ms)
    return True


def set_role(
    db: Connection,
    device_id: str,
    user_id: str,
    *,
    role: Role,
    until_ms: int | None = None,
    now_ms: int,
    by_user_id: str | None = None,
) -> bool:
    """Change the role of a user and its end. False if the user does not have the device.

    If the user can do less afterwards, the device's shares end: the user may know one of their links. Raises
    LastOwner, DeviceUnknown, and ValueError for an owner with an end.
    """
    _check_role(role, until_ms)
    lock_account(db, user_id)
    lock_device(db, device_id)
    everybody = current_users(db, device_id, now_ms=now_ms)
    if (had := everybody.get(user_id)) is None:
        return False
    if role != "owner" and _is_last_owner(had, everybody.values()):
        raise LastOwner(device_id)
    changed = Access(user_id=user_id, device_id=device_id, role=role, until_ms=until_ms)
    _grant(db, changed, had, now_ms=now_ms)
    if not _covers(changed, had):
        _end_shares(db, device_id)
    detail: dict[str, str | int | float] = {"user": user_id, "role": role}
    if until_ms is not None:
        detail["until"] = until_ms
    _record(db, device_id, "role_changed", by_user_id, detail, now_ms=now_ms)
    return True


def take(db: Connection, device_id: str, user_id: str, *, now_ms: int, by_user_id: str | None = None) -> bool:
    """Remove a user's access to a device. False if the user does not have it.

    The device's shares end, since the user may know one of their links; not if users remove themselves.
    Raises LastOwner and DeviceUnknown.
    """
    lock_device(db, device_id)
    everybody = current_users(db, device_id, now_ms=now_ms)
    if (had := everybody.get(user_id)) is None:
        return False
    if _is_last_owner(had, everybody.values()):
        raise LastOwner(device_id)
    _take(db, device_id, [user_id], now_ms=now_ms)
    if by_user_id != user_id:
        _end_shares(db, device_id)
    _record(db, device_id, "user_removed", by_user_id, {"user": user_id}, now_ms=now_ms)
    return True


def leave(
    db: Connection, device_id: str, user_id: str, *, now_ms: int, by_user_id: str | None = None
) -> Left | None:
    """Let a user give up a device: "left", or "removed" for the last owner.

    None if the user does not have it.

    When the last owner leaves, all users lose the device: its shares, activity, shots, usage and registered
    tokens end, and the next user can pair it. Raises DeviceUnknown.
    """
    lock_device(db, device_id)
    everybody = current_users(db, device_id, now_ms=now_ms)
    if (had := everybody.get(user_id)) is None:
        return None
    if _is_last_owner(had, everybody.values()):
        release_from(db, device_id, everybody, now_ms=now_ms)
        return "removed"
    _take(db, device_id, [user_id], now_ms=now_ms)
    _record(db, device_id, "user_removed", by_user_id or user_id, {"user": user_id}, now_ms=now_ms)
    return "left"


def release(db: Connection, device_id: str, *, now_ms: int) -> None:
    """Take a device from all users, like when the last owner leaves. Raises DeviceUnknown."""
    lock_device(db, device_id)
    release_from(db, device_id, current_users(db, device_id, now_ms=now_ms), now_ms=now_ms)


def release_from(db: Connection, device_id: str, user_ids: Collection[str], *, now_ms: int) -> None:
    """Take a device from all its users. The caller has locked the device with `lock_device`."""
    publish_changed_access(db, [(device_id, user_id) for user_id in user_ids], now_ms=now_ms)
    _release(db, [device_id])


def leave_some(db: Connection, user_id: str, *, at_most: int, now_ms: int) -> int:
    """Let a user give up some devices, like `leave`. Returns how many.

    Running servers are notified about the other users of these devices. The caller notifies them about this
    user.
    """
    ids = db.scalars(_SOME_DEVICES, {"of_user": user_id, "at_most": at_most}).all()
    if not ids:
        return 0
    lock_devices(db, ids)
    everybody: dict[str, list[Access]] = {device_id: [] for device_id in ids}
    for row in db.execute(_OF_DEVICES, {"ids": ids, "now_ms": now_ms}):
        everybody[row[1]].append(_access(row))
    released: list[str] = []
    left: list[str] = []
    for device_id, accesses in everybody.items():
        had = next((access for access in accesses if access.user_id == user_id), None)
        if had is not None:
            (released if _is_last_owner(had, accesses) else left).append(device_id)
    mine = device_users.c.user_id == user_id
    db.execute(delete(device_users).where(mine, device_users.c.device_id.in_(ids)))
    if released:
        lose = [(each.device_id, each.user_id) for id_ in released for each in everybody[id_]]
        publish_changed_access(db, [pair for pair in lose if pair[1] != user_id], now_ms=now_ms)
        _release(db, released)
    add_activity(
        db,
        [
            Activity(
                device_id=device_id,
                at_ms=now_ms,
                kind="user_removed",
                user_id=user_id,
                detail={"user": user_id},
            )
            for device_id in left
        ],
    )
    return len(ids)


def _release(db: Connection, device_ids: Sequence[str]) -> None:
    """Take devices from all users. Running servers have been notified."""
    for table in (device_users, shares):
        db.execute(delete(table).where(table.c.device_id.in_(device_ids)))
    end_pairing_tokens(db, *device_ids)
    changed = update(devices).where(devices.c.id.in_(device_ids))
    db.execute(changed.values(name=None, key_pending_since_ms=None))
    forget_activity(db, *device_ids)
    forget_state(db, *device_ids)
    forget_shots(db, *device_ids)
    forget_usage(db, *device_ids)


def _check_role(role: Role, until_ms: int | None) -> None:
    if role == "owner" and until_ms is not None:
        raise ValueError("an owner has a device for ever: leave the time out, or choose another role")


def current_users(db: Connection, device_id: str, *, now_ms: int) -> dict[str, Access]:
    """Read the current access to a device, by user id. It stays current only while the device is locked."""
    rows = db.execute(_OF_DEVICE, {"of_device": device_id, "now_ms": now_ms})
    return {row[0]: _access(row) for row in rows}


def _covers(access: Access, other: Access) -> bool:
    """Tell whether access allows at least as much as other access, for at least as long."""
    return role_includes(access.role, other.role) and (
        access.until_ms is None or (other.until_ms is not None and access.until_ms >= other.until_ms)
    )


def _grant(db: Connection, new: Access, had: Access | None, *, now_ms: int) -> None:
    """Store access, replacing the user's current or former access."""
    _delete(db, new.device_id, [new.user_id])
    row = {
        "user_id": new.user_id,
        "device_id": new.device_id,
        "role": new.role,
        "until_ms": new.until_ms,
        "claimed_at_ms": now_ms if had is None else had.claimed_at_ms,
    }
    add_device_users(db, [row])
    # Running servers update the grants of this user's attached clients.
    publish_change(db, "access_changed", device_id=new.device_id, user_id=new.user_id, now_ms=now_ms)


def _is_last_owner(access: Access, everybody: Collection[Access]) -> bool:
    return access.role == "owner" and sum(each.role == "owner" for each in everybody) == 1


def _take(db: Connection, device_id: str, user_ids: Sequence[str], *, now_ms: int) -> None:
    _delete(db, device_id, user_ids)
    publish_changed_access(db, [(device_id, user_id) for user_id in user_ids], now_ms=now_ms)


def _end_shares(db: Connection, device_id: str) -> None:
    # A user who lost access may know the link of a share, which would restore it.
    db.execute(delete(shares).where(shares.c.device_id == device_id))


def _delete(db: Connection, device_id: str, user_ids: Sequence[str]) -> None:
    db.execute(
        delete(device_users)
        .where(device_users.c.device_id == device_id)
        .where(device_users.c.user_id.in_(user_ids))
    )


def _record(
    db: Connection,
    device_id: str,
    kind: ActivityKind,
    by_user_id: str | None,
    detail: Detail,
    *,
    now_ms: int,
) -> None:
    entry = Activity(device_id=device_id, at_ms=now_ms, kind=kind, user_id=by_user_id, detail=detail)
    add_activity(db, [entry])


def _access(row: Sequence[Any]) -> Access:
    user_id, device_id, role, until_ms, claimed_at_ms = row
    return Access(
        user_id=user_id, device_id=device_id, role=role, until_ms=until_ms, claimed_at_ms=claimed_at_ms
    )
