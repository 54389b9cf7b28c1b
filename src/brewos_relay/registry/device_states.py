"""The last state of each device, used when it reconnects without sending all of its state."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, exists, func, or_, select

from brewos_relay.registry.records import StoredState
from brewos_relay.registry.schema import device_states, device_users, devices
from brewos_relay.registry.upserts import insert_into
from brewos_relay.vocabulary import now_ms

STATES_AT_ONCE: Final = 100
"""How many states are written in one transaction, so that other writers get their turn."""
STATE_BYTES_AT_MOST: Final = 16 * 1024
"""Larger states are not stored. A machine's state has 1 to 2 KiB."""

AHEAD_US: Final = 3600 * 1_000_000
"""How far ahead of this clock the time of a stored state is believed. Clocks of instances differ by less."""

_IDS_AT_ONCE: Final = 500
_HAS_USER: Final = exists().where(device_users.c.device_id == devices.c.id)
_IS_KNOWN: Final = or_(~devices.c.registered_itself, _HAS_USER)
_FIRST_CLAIM_MS: Final = (
    select(func.min(device_users.c.claimed_at_ms))
    .where(device_users.c.device_id == devices.c.id)
    .scalar_subquery()
)
_KNOWN: Final = select(devices.c.id).where(devices.c.id.in_(bindparam("ids", expanding=True)), _IS_KNOWN)
# A state of the time before the current users may have been stored late.
_STATES: Final = (
    select(device_states)
    .join_from(device_states, devices)
    .where(device_states.c.device_id.in_(bindparam("ids", expanding=True)), _IS_KNOWN)
    .where(device_states.c.at_ms >= func.coalesce(_FIRST_CLAIM_MS, 0))
    .where(device_states.c.at_ms > bindparam("after_ms"))
)


@cache
def _replacing(dialect: str) -> Any:
    saved = insert_into(device_states, dialect)
    names = ("payload", "is_text", "at_ms", "since_us")
    return saved.on_conflict_do_update(
        index_elements=["device_id"],
        set_={name: saved.excluded[name] for name in names},
        where=or_(
            device_states.c.since_us <= saved.excluded.since_us,
            device_states.c.since_us > bindparam("believed_us"),
        ),
    )


def save_states(db: Connection, states: Sequence[StoredState]) -> None:
    """Store the states of devices, except where the stored one is from a later connection of the device.

    So an instance that has lost a device cannot replace the state that its new instance stored, however late
    it saves. A connection always gets a later time than the state that it continues, even if the clock was
    set back. A stored time that is over an hour ahead comes from a wrong clock and is ignored.

    Only devices that have users or were added by hand: anyone can register others.
    """
    of_id = {state.device_id: state for state in states if len(state.payload) <= STATE_BYTES_AT_MOST}
    replacing = _replacing(db.dialect.name)
    believed_us = now_ms() * 1000 + AHEAD_US
    for start in range(0, len(of_id), _IDS_AT_ONCE):
        ids = sorted(of_id)[start : start + _IDS_AT_ONCE]
        if known := sorted(db.scalars(_KNOWN, {"ids": ids})):
            rows = [{**_row(of_id[device_id]), "believed_us": believed_us} for device_id in known]
            db.execute(replacing, rows)


def find_states(db: Connection, ids: Sequence[str], *, after_ms: int) -> dict[str, StoredState]:
    """Read the states of devices that are newer than `after_ms` and than their first current user."""
    return {
        device_id: StoredState(
            device_id=device_id, payload=payload, is_text=is_text, at_ms=at_ms, since_us=since_us
        )
        for start in range(0, len(ids), _IDS_AT_ONCE)
        for device_id, payload, is_text, at_ms, since_us in db.execute(
            _STATES, {"ids": ids[start : start + _IDS_AT_ONCE], "after_ms": after_ms}
        )
    }


def forget_state(db: Connection, *device_ids: str) -> None:
    """Delete the states of devices, like when they get other users or other machines."""
    db.execute(delete(device_states).where(device_states.c.device_id.in_(device_ids)))


def _row(state: StoredState) -> dict[str, Any]:
    return {
        "device_id": state.device_id,
        "payload": state.payload,
        "is_text": state.is_text,
        "at_ms": state.at_ms,
        "since_us": state.since_us,
    }
