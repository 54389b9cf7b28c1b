"""Rows for a registry."""

from collections.abc import Sequence

from sqlalchemy import Connection

from brewos_relay.registry import housekeeping
from brewos_relay.registry.account_removal import close_account, remove_some
from brewos_relay.registry.bulk import Step
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.vocabulary import Role

NOW_MS = 1_800_000_000_000


def device_id(number: int) -> str:
    return f"BRW-{number:08X}"


def new_device(
    number: int, *users: str, name: str | None = None, role: Role = "owner", key: int | None = None
) -> NewDevice:
    """Make a device whose key's hash is made of one byte: `key`, or else the number."""
    return NewDevice(
        id=device_id(number),
        key_hash=bytes([number % 256 if key is None else key]) * 32,
        name=name,
        more_user_ids=users,
        role=role,
    )


def register(database: Database, rows: Sequence[NewDevice], *, now_ms: int = NOW_MS) -> None:
    with database.writing() as db:
        add_devices(db, rows, now_ms=now_ms)


def prune(db: Connection, *, now_ms: int) -> None:
    """Delete all expired rows, in the same steps as a server."""
    run_all_steps(db, housekeeping.expired(now_ms=now_ms))
    run_all_steps(db, housekeeping.find_excess(db, now_ms=now_ms))


def run_all_steps(db: Connection, steps: list[Step]) -> None:
    """Run the steps of housekeeping to their end, however slow the machine is."""
    while housekeeping.prune(db, steps):
        pass


def remove_user(db: Connection, user_id: str, *, now_ms: int) -> bool:
    """Remove an account in one transaction. False if there is none."""
    if not close_account(db, user_id, now_ms=now_ms):
        return False
    while remove_some(db, user_id, now_ms=now_ms):
        pass
    return True
