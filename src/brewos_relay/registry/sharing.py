"""Shares: an owner offers access by a link or a typed code, to as many as they say and for as long.

A share is worth something only as long as whoever made it owns the device, and it never takes anything from
those who have access already.
"""

from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, insert, select, update

from brewos_relay.errors import DeviceUnknown, NotAnOwner
from brewos_relay.registry.access import access_of, give
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.pairing_limits import check_quota
from brewos_relay.registry.records import Access, Activity, ActivityKind, PairingResult, Share
from brewos_relay.registry.schema import shares
from brewos_relay.vocabulary import GuestRole

SHARES_AT_MOST: Final = 20
"""How many shares of one device are open at the same time; the oldest ends for a new one."""

_OPEN: Final = (
    select(shares)
    .where(shares.c.device_id == bindparam("of_device"))
    .where(shares.c.expires_at_ms > bindparam("now_ms"))
    .order_by(shares.c.created_at_ms, shares.c.id)
)


def new_share(
    db: Connection,
    *,
    share_id: str,
    device_id: str,
    token_hash: bytes,
    code_hash: bytes,
    role: GuestRole,
    until_ms: int | None,
    uses_left: int | None,
    created_by: str,
    now_ms: int,
    expires_at_ms: int,
) -> Share:
    """Offer access to a device, by whoever has the token or the code; raises NotAnOwner and
    DeviceUnknown.

    ValueError if the share could give nothing, or would make owners.
    """
    if role not in ("member", "viewer"):
        raise ValueError(f"{role!r} cannot be given by a share: it must be member or viewer")
    if until_ms is not None and until_ms <= now_ms:
        raise ValueError("the time until which the share gives access has passed")
    if uses_left is not None and uses_left < 1:
        raise ValueError(f"{uses_left} people cannot take a share: it must be 1 or more, or any number")
    lock_device(db, device_id)
    if not _owns(db, created_by, device_id, now_ms=now_ms):
        raise NotAnOwner(device_id)
    there = db.execute(_OPEN, {"of_device": device_id, "now_ms": now_ms}).all()
    for row in there[: max(len(there) + 1 - SHARES_AT_MOST, 0)]:
        db.execute(delete(shares).where(shares.c.id == row.id))
    share = Share(
        id=share_id,
        device_id=device_id,
        role=role,
        until_ms=until_ms,
        uses_left=uses_left,
        created_by=created_by,
        created_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
    )
    db.execute(
        insert(shares),
        {
            "id": share_id,
            "device_id": device_id,
            "token_hash": token_hash,
            "code_hash": code_hash,
            "role": role,
            "until_ms": until_ms,
            "created_by": created_by,
            "created_at_ms": now_ms,
            "expires_at_ms": expires_at_ms,
            "uses_left": uses_left,
        },
    )
    _note(db, share, "shared", created_by, now_ms=now_ms)
    return share


def accept_share(
    db: Connection,
    *,
    device_id: str,
    token_hash: bytes,
    user_id: str,
    now_ms: int,
    machines_at_most: int | None = None,
) -> PairingResult | None:
    """Give a user what a share's link offers; None if it offers nothing (any more).

    With `machines_at_most`, raises QuotaReached if the user has as many other machines.

    Whoever has at least as much keeps it, and the share is not used up. Nor is it if they have more of one
    and less of the other, say to see it for ever, where the share lets them use it until Sunday: giving
    both would be more than it says.
    """
    wanted = (shares.c.device_id == device_id, shares.c.token_hash == token_hash)
    return _take(db, wanted, user_id=user_id, now_ms=now_ms, machines_at_most=machines_at_most)


def accept_share_code(
    db: Connection, *, code_hash: bytes, user_id: str, now_ms: int, machines_at_most: int | None = None
) -> PairingResult | None:
    """Give a user what a share offers to whoever types its code; as `accept_share`."""
    wanted = (shares.c.code_hash == code_hash,)
    return _take(db, wanted, user_id=user_id, now_ms=now_ms, machines_at_most=machines_at_most)


def shares_of(db: Connection, device_id: str, *, now_ms: int) -> list[Share]:
    """List the shares of a device that can still be taken, the oldest first."""
    rows = db.execute(_OPEN, {"of_device": device_id, "now_ms": now_ms}).all()
    return [_share(row) for row in rows if row.uses_left != 0 and _offers(db, row, now_ms=now_ms)]


def revoke_share(
    db: Connection, device_id: str, share_id: str, *, now_ms: int, user_id: str | None = None
) -> bool:
    """End a share of a device, because `user_id` says so; False if there is none. Who took it keeps it."""
    ended = delete(shares).where(shares.c.id == share_id, shares.c.device_id == device_id)
    row = db.execute(ended.returning(*shares.c)).one_or_none()
    if row is None:
        return False
    _note(db, _share(row), "share_revoked", user_id, now_ms=now_ms)
    return True


def _take(
    db: Connection,
    wanted: tuple[ColumnElement[bool], ...],
    *,
    user_id: str,
    now_ms: int,
    machines_at_most: int | None,
) -> PairingResult | None:
    device_id = db.scalar(select(shares.c.device_id).where(*wanted))
    if device_id is None:
        return None
    if machines_at_most is not None:  # first, since accounts are locked before devices
        check_quota(db, user_id, limit=machines_at_most, now_ms=now_ms, device_id=device_id)
    try:
        device = lock_device(db, device_id)
    except DeviceUnknown:
        return None
    # Again, now that nobody else changes it.
    row = db.execute(select(shares).where(*wanted).where(shares.c.expires_at_ms > now_ms)).one_or_none()
    if row is None or not _offers(db, row, now_ms=now_ms):
        return None
    if row.uses_left != 0 and give(
        db, device_id, user_id, role=row.role, until_ms=row.until_ms, now_ms=now_ms
    ):
        if row.uses_left is not None:
            db.execute(update(shares).where(shares.c.id == row.id).values(uses_left=row.uses_left - 1))
        _note(db, _share(row), "share_claimed", user_id, now_ms=now_ms)
    now = _access(db, user_id, device_id, now_ms=now_ms)
    if now is None:
        return None
    return PairingResult(device_id=device_id, device_name=device.name, role=now.role, until_ms=now.until_ms)


def _offers(db: Connection, row: Row[Any], *, now_ms: int) -> bool:
    """Tell whether what a share gives is still to be had, and whoever made it may still give it."""
    return (row.until_ms is None or row.until_ms > now_ms) and _owns(
        db, row.created_by, row.device_id, now_ms=now_ms
    )


def _owns(db: Connection, user_id: str, device_id: str, *, now_ms: int) -> bool:
    access = _access(db, user_id, device_id, now_ms=now_ms)
    return access is not None and access.role == "owner"


def _access(db: Connection, user_id: str, device_id: str, *, now_ms: int) -> Access | None:
    return access_of(db, [(user_id, device_id)], now_ms=now_ms).get((user_id, device_id))


def _share(row: Row[Any]) -> Share:
    return Share(
        id=row.id,
        device_id=row.device_id,
        role=row.role,
        until_ms=row.until_ms,
        uses_left=row.uses_left,
        created_by=row.created_by,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
    )


def _note(db: Connection, share: Share, kind: ActivityKind, user_id: str | None, *, now_ms: int) -> None:
    entry = Activity(
        device_id=share.device_id,
        at_ms=now_ms,
        kind=kind,
        user_id=user_id,
        detail={"share": share.id, "role": share.role},
    )
    add_activity(db, [entry])
