"""The usage of each device by days: energy, time switched on, and steam cycles. Old days are deleted."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, or_, select

from brewos_relay.registry.devices import lock_devices
from brewos_relay.registry.records import DayUsage, Usage
from brewos_relay.registry.schema import daily_usage
from brewos_relay.registry.shots import present_users_since
from brewos_relay.registry.upserts import insert_into

USAGE_AT_ONCE: Final = 50
"""How many records are written in one transaction, so that other writers get their turn."""
DAYS_KEPT: Final = 92

_CONTINUOUS_MS: Final = 3600 * 1000
"""A counter of today's energy that was read this long ago would show its reset at midnight."""
_DAY_S: Final = 24 * 3600
_MOST_MWH: Final = 100_000_000
"""The energy of a day at 4 kW."""
_GREATEST: Final = 2**63 - 1

_LAST: Final = (
    select(daily_usage.c.day, daily_usage.c.counter_mwh, daily_usage.c.at_ms)
    .where(daily_usage.c.device_id == bindparam("of_device"), daily_usage.c.counter_mwh.is_not(None))
    .order_by(daily_usage.c.day.desc())
    .limit(1)
)
_DAYS: Final = (
    select(daily_usage.c.day, daily_usage.c.energy_mwh, daily_usage.c.on_s, daily_usage.c.steam_cycles)
    .where(daily_usage.c.device_id == bindparam("of_device"), daily_usage.c.day >= bindparam("from_day"))
    .order_by(daily_usage.c.day)
)


def add_usage(db: Connection, added: Sequence[Usage]) -> None:
    """Add usage to that of its days, and delete days that are too old.

    Like shots, only that of devices with users or added by hand, since they have their present users. Energy
    by a counter is the difference to its last value, of whichever server stored it, so none is added twice.
    """
    ids = sorted({usage.device_id for usage in added})
    lock_devices(db, ids)
    since_ms = present_users_since(db, ids)
    for usage in added:
        if usage.began_at_ms >= since_ms.get(usage.device_id, _GREATEST):
            _add(db, usage)


def _add(db: Connection, usage: Usage) -> None:
    energy_mwh = usage.energy_mwh if usage.counter_mwh is None else _used(db, usage)
    table = insert_into(daily_usage, db.dialect.name).values(
        device_id=usage.device_id,
        day=usage.day,
        energy_mwh=min(energy_mwh, _MOST_MWH),
        on_s=min(usage.on_s, _DAY_S),
        steam_cycles=usage.steam_cycles,
        counter_mwh=usage.counter_mwh,
        at_ms=usage.at_ms,
    )
    new, old = table.excluded, daily_usage.c
    db.execute(
        table.on_conflict_do_update(
            index_elements=[old.device_id, old.day],
            set_={
                "energy_mwh": old.energy_mwh + new.energy_mwh,
                "on_s": old.on_s + new.on_s,
                "steam_cycles": old.steam_cycles + new.steam_cycles,
                "counter_mwh": func.coalesce(new.counter_mwh, old.counter_mwh),
                "at_ms": new.at_ms,
            },
        )
    )
    oldest, newest = usage.day - DAYS_KEPT, usage.day + 1  # a clock may have been wrong
    old_days = or_(old.day <= oldest, old.day > newest)
    db.execute(delete(daily_usage).where(old.device_id == usage.device_id, old_days))


def _used(db: Connection, usage: Usage) -> int:
    """Return what a counter of the energy since midnight adds to that of its day."""
    assert usage.counter_mwh is not None
    last = db.execute(_LAST, {"of_device": usage.device_id}).one_or_none()
    if last is None:
        return usage.counter_mwh
    is_next_day = last.day < usage.day and usage.at_ms - last.at_ms > _CONTINUOUS_MS
    if is_next_day or usage.counter_mwh < last.counter_mwh:
        return usage.counter_mwh  # it began at 0 again
    return int(usage.counter_mwh - last.counter_mwh)


def usage_of(db: Connection, device_id: str, *, from_day: int) -> list[DayUsage]:
    """List the usage of a device from a day on, oldest first."""
    rows = db.execute(_DAYS, {"of_device": device_id, "from_day": from_day})
    return [DayUsage(day=row[0], energy_mwh=row[1], on_s=row[2], steam_cycles=row[3]) for row in rows]


def forget_usage(db: Connection, *device_ids: str) -> None:
    """Delete the usage of devices, like when they get other users."""
    db.execute(delete(daily_usage).where(daily_usage.c.device_id.in_(device_ids)))
