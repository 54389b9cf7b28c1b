"""Limits on new devices: the pairing window, new ids of each network, and devices of each account.

All are stored in the registry, so that they hold across all instances of a server.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from sqlalchemy import Connection, Select, bindparam, case, delete, func, or_, select

from brewos_relay.errors import PairingClosed, QuotaReached, TooManyNewDevices
from brewos_relay.registry.schema import device_users, new_ids, pairing_window, users
from brewos_relay.registry.upserts import insert_into

PairingMode = Literal["open", "window", "closed"]

COUNTED_MS: Final = 24 * 3600 * 1000
"""How long a new id counts towards the quota of its network."""
WINDOW_AT_MOST_MS: Final = 24 * 3600 * 1000
"""The longest time that the pairing window can be open."""

_ROW: Final = 1


@cache
def _count_one(dialect: str) -> Any:
    over = new_ids.c.since_ms <= bindparam("over_ms")
    values = {"network": bindparam("name"), "since_ms": bindparam("now_ms"), "count": 1}
    set_ = {
        "since_ms": case((over, bindparam("now_ms")), else_=new_ids.c.since_ms),
        "count": case((over, 1), else_=new_ids.c.count + 1),
    }
    inserted = insert_into(new_ids, dialect).values(values)
    return inserted.on_conflict_do_update(index_elements=["network"], set_=set_).returning(
        new_ids.c.count, new_ids.c.since_ms
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDeviceRules:
    """Which unknown machines may register: the pairing mode, and how many new ids a day.

    `per_network` is the limit of one network; each wider network around it may have twice as many. None is no
    limit.
    """

    mode: PairingMode = "open"
    per_network: int | None = 500


def open_window(db: Connection, *, now_ms: int, for_ms: int) -> int:
    """Open the pairing window from now on, or prolong it. Returns when it closes.

    Raises ValueError unless the time is between 1 ms and a day.
    """
    if not 0 < for_ms <= WINDOW_AT_MOST_MS:
        raise ValueError("pairing can be opened for a day at most")
    until_ms = now_ms + for_ms
    row = {"id": _ROW, "open_until_ms": until_ms}
    opened = insert_into(pairing_window, db.dialect.name).values(row)
    set_ = {"open_until_ms": until_ms}
    db.execute(opened.on_conflict_do_update(index_elements=["id"], set_=set_))
    return until_ms


def close_window(db: Connection) -> None:
    """Close the pairing window if it is open."""
    db.execute(delete(pairing_window))


def window_open_until(db: Connection, *, now_ms: int) -> int | None:
    """Return when the pairing window closes. None if it is closed."""
    until_ms: int | None = db.scalar(select(pairing_window.c.open_until_ms))
    return until_ms if until_ms is not None and until_ms > now_ms else None


def check_window(db: Connection, mode: PairingMode, *, now_ms: int) -> None:
    """Raise PairingClosed unless unknown machines may register now."""
    if mode == "closed" or (mode == "window" and window_open_until(db, now_ms=now_ms) is None):
        raise PairingClosed


def count_new_id(db: Connection, networks: Sequence[str], *, per_network: int, now_ms: int) -> None:
    """Count a new id of a network. Raises TooManyNewDevices at the limit.

    `networks` are the caller's network and those around it, the widest first. Each row stays locked until the
    transaction ends, so that two instances cannot both use the last place.
    """
    count_one = _count_one(db.dialect.name)
    for place, network in enumerate(networks):
        values = {"name": network, "now_ms": now_ms, "over_ms": now_ms - COUNTED_MS}
        count, since_ms = db.execute(count_one, values).one()
        if count > per_network << (len(networks) - 1 - place):
            raise TooManyNewDevices(retry_s=-(-(since_ms + COUNTED_MS - now_ms) // 1000))


def check_quota(
    db: Connection, user_id: str, *, limit: int, now_ms: int, device_id: str | None = None
) -> None:
    """Raise QuotaReached if a user has `limit` devices. Call this before the user gets another.

    Devices in every role are counted; ended access is not. `device_id` is the device to be given: a user who
    has it already passes. The account stays locked until the transaction ends, so that two transactions
    cannot both give the user a last device.
    """
    db.execute(select(users.c.id).where(users.c.id == user_id).with_for_update(key_share=True)).all()
    has = _count_of(user_id, now_ms)
    if device_id is not None and db.scalar(has.where(device_users.c.device_id == device_id)):
        return
    if (db.scalar(has) or 0) >= limit:
        raise QuotaReached(limit)


def machine_count(db: Connection, user_id: str, *, now_ms: int) -> int:
    """Count the devices of a user, in any role."""
    count: int | None = db.scalar(_count_of(user_id, now_ms))
    return count or 0


def _count_of(user_id: str, now_ms: int) -> Select[Any]:
    not_over = or_(device_users.c.until_ms.is_(None), device_users.c.until_ms > now_ms)
    return select(func.count()).where(device_users.c.user_id == user_id, not_over)
