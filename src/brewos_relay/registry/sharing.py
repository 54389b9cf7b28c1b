"""Shares: an owner offers access to a device, by link or typed code.

The owner chooses the role, the end, and how many users may accept. A share is valid only while its creator
owns the device. Accepting one never reduces the access that a user has.
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
"""How many shares of one device are open at the same time. A new one ends the oldest."""

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
    """Create a share of a device for the holders of a token or code. Raises NotAnOwner and DeviceUnknown.

    Raises ValueError if the share would give nothing, or would make owners.
    """
    if role not in ("member", "viewer"):
        raise ValueError(f"the role of a share must be member or viewer, got {role!r}")
    if until_ms is not None and until_ms <= now_ms:
        raise ValueError("the access that the share gives would have ended already")
    if uses_left is not None and uses_left < 1:
        raise ValueError(f"uses_left must be 1 or more, or None for any number, got {uses_left}")
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
    _record(db, share, "shared", created_by, now_ms=now_ms)
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
    """Give a user the access that a share's link offers. None if the share is not valid.

    With `machines_at_most`, raises QuotaReached if the user has that many other devices.

    A user with at least as much access keeps it, and the share is not used up. The same applies if the share
    gives more in one respect and less in another: watching for ever against using until Sunday. Combining
    both would exceed the share.
    """
    wanted = (shares.c.device_id == device_id, shares.c.token_hash == token_hash)
    return _take(db, wanted, user_id=user_id, now_ms=now_ms, machines_at_most=machines_at_most)


def accept_share_code(
    db: Connection, *, code_hash: bytes, user_id: str, now_ms: int, machines_at_most: int | None = None
) -> PairingResult | None:
    """Give a user the access that a share's code offers; like `accept_share`."""
    wanted = (shares.c.code_hash == code_hash,)
    return _take(db, wanted, user_id=user_id, now_ms=now_ms, machines_at_most=machines_at_most)


def shares_of(db: Connection, device_id: str, *, now_ms: int) -> list[Share]:
    """List the valid shares of a device, the oldest first."""
    rows = db.execute(_OPEN, {"of_device": device_id, "now_ms": now_ms}).all()
    return [_share(row) for row in rows if row.uses_left != 0 and _offers(db, row, now_ms=now_ms)]


def revoke_share(
    db: Connection, device_id: str, share_id: str, *, now_ms: int, user_id: str | None = None
) -> bool:
    """End a share of a device on behalf of `user_id`.

    False if there is none. Users who accepted it keep access.
    """
    ended = delete(shares).where(shares.c.id == share_id, shares.c.device_id == device_id)
    row = db.execute(ended.returning(*shares.c)).one_or_none()
    if row is None:
        return False
    _record(db, _share(row), "share_revoked", user_id, now_ms=now_ms)
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
    if machines_at_most is not None:  # first: accounts are locked before devices
        check_quota(db, user_id, limit=machines_at_most, now_ms=now_ms, device_id=device_id)
    try:
        device = lock_device(db, device_id)
    except DeviceUnknown:
        return None
    # Read it again with the device locked.
    row = db.execute(select(shares).where(*wanted).where(shares.c.expires_at_ms > now_ms)).one_or_none()
    if row is None or not _offers(db, row, now_ms=now_ms):
        return None
    if row.uses_left != 0 and give(
        db, device_id, user_id, role=row.role, until_ms=row.until_ms, now_ms=now_ms
    ):
        if row.uses_left is not None:
            db.execute(update(shares).where(shares.c.id == row.id).values(uses_left=row.uses_left - 1))
        _record(db, _share(row), "share_claimed", user_id, now_ms=now_ms)
    now = _access(db, user_id, device_id, now_ms=now_ms)
    if now is None:
        return None
    return PairingResult(device_id=device_id, device_name=device.name, role=now.role, until_ms=now.until_ms)


def _offers(db: Connection, row: Row[Any], *, now_ms: int) -> bool:
    """Tell whether the access that a share gives has not ended, and its creator may still give it."""
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


def _record(db: Connection, share: Share, kind: ActivityKind, user_id: str | None, *, now_ms: int) -> None:
    entry = Activity(
        device_id=share.device_id,
        at_ms=now_ms,
        kind=kind,
        user_id=user_id,
        detail={"share": share.id, "role": share.role},
    )
    add_activity(db, [entry])
