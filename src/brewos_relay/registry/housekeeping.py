"""Housekeeping: deleting expired rows, excess rows and unused devices."""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import trio
from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from brewos_relay.errors import RegistryError
from brewos_relay.registry import activity as activity_module
from brewos_relay.registry import known_networks as known_networks_module
from brewos_relay.registry.account_removal import closed_accounts, remove_some
from brewos_relay.registry.activity import forget_activity
from brewos_relay.registry.bulk import PAUSE_S, Step, Stopwatch
from brewos_relay.registry.devices import chunks, lock_devices
from brewos_relay.registry.notices import NOTICES_KEPT_MS
from brewos_relay.registry.pairing_limits import COUNTED_MS
from brewos_relay.registry.pairing_proof import expire_pairings
from brewos_relay.registry.schema import (
    activity,
    changes,
    claims,
    device_states,
    device_users,
    devices,
    invites,
    known_networks,
    new_ids,
    notices,
    redeemed_invites,
    refresh_tokens,
    sessions,
    shares,
    tokens,
)
from brewos_relay.vocabulary import now_ms

CHANGES_KEPT_MS: Final = 3600 * 1000
UNUSED_DEVICES_KEPT_MS: Final = 30 * 24 * 3600 * 1000
UNUSED_DEVICES_KEPT: Final = 50_000
STATES_KEPT_MS: Final = 7 * 24 * 3600 * 1000
ROWS_AT_ONCE: Final = 1000
DEVICES_AT_ONCE: Final = 200
"""How many rows of a table, and how many devices, one statement deletes, so that transactions stay short."""
FOUND_AT_ONCE: Final = 10_000

# A machine registers each time it is switched on, so a deleted one comes back. Devices that were added by
# hand, have users, or have pairing tokens are not unused.
_UNUSED: Final = and_(
    devices.c.registered_itself,
    ~exists().where(device_users.c.device_id == devices.c.id),
    ~exists().where(claims.c.device_id == devices.c.id),
)


PRUNE_EVERY_S: Final = 3600.0

Run = Callable[..., Awaitable[Any]]

logger = logging.getLogger(__name__)


class Housekeeper:
    """Deletes expired data and finishes the removal of accounts, every hour and on request.

    `read` and `write` are those of the store.
    """

    def __init__(self, read: Run, write: Run, *, states_kept_ms: int = STATES_KEPT_MS) -> None:
        self._read = read
        self._write = write
        self._states_kept_ms = states_kept_ms
        self._more_to_do = trio.Event()

    async def run(self) -> None:
        """Delete and remove, until cancelled. A failure is logged; the next round tries again."""
        while True:
            self._more_to_do = trio.Event()
            try:
                for user_id in await self._read(closed_accounts):
                    await self._run_steps(partial(remove_some, user_id=user_id, now_ms=now_ms()))
                over = expired(now_ms=now_ms(), states_kept_ms=self._states_kept_ms)
                await self._run_steps(partial(prune, steps=over))
                excess = await self._read(find_excess, now_ms=now_ms())
                await self._run_steps(partial(prune, steps=excess))
            except Exception as problem:  # even if no thread can be started: the next round may succeed
                logger.warning("expired data could not be deleted: %s; trying again", problem)
            with trio.move_on_after(PRUNE_EVERY_S):
                await self._more_to_do.wait()

    async def finish_removals(self, *, within_s: float) -> None:
        """Give up the devices of closed accounts, in many short transactions.

        Then wake up `run`, which does the rest after `within_s` or a failure.
        """
        until_s = trio.current_time() + within_s
        try:
            for user_id in await self._read(closed_accounts):
                removing = partial(remove_some, user_id=user_id, now_ms=now_ms())
                await self._run_steps(removing, until_s=until_s)
        except RegistryError as problem:
            logger.warning("the removal of an account was interrupted: %s; continuing later", problem)
        finally:
            self._more_to_do.set()

    async def _run_steps(self, step: Step, *, until_s: float = math.inf) -> None:
        """Run steps in one transaction after another, with time for other writers in between."""
        while trio.current_time() < until_s:
            if not await self._write(step):
                return
            await trio.sleep(PAUSE_S)


def expired(*, now_ms: int, states_kept_ms: int = STATES_KEPT_MS) -> list[Step]:
    """Return the steps that delete expired rows.

    These are sessions, refresh tokens, tokens, invites, pairing tokens, shares and access with an end;
    networks without a recent sign-in; changes that all running servers have read; old activity, states and
    notices; and pairings whose machine never connected.
    """
    over: list[tuple[Table, ColumnElement[bool]]] = [
        (table, table.c.expires_at_ms <= now_ms)
        for table in (sessions, refresh_tokens, tokens, invites, redeemed_invites, claims, shares)
    ]
    over += [
        (device_users, device_users.c.until_ms <= now_ms),
        (known_networks, known_networks.c.seen_at_ms <= now_ms - known_networks_module.KEPT_MS),
        (changes, changes.c.at_ms <= now_ms - CHANGES_KEPT_MS),
        (notices, notices.c.at_ms <= now_ms - NOTICES_KEPT_MS),
        (new_ids, new_ids.c.since_ms <= now_ms - COUNTED_MS),
        (device_states, device_states.c.at_ms <= now_ms - states_kept_ms),
        (activity, activity.c.at_ms <= now_ms - activity_module.KEPT_MS),
    ]
    steps = [partial(_delete_some, table=table, is_over=is_over) for table, is_over in over]
    return [*steps, partial(expire_pairings, now_ms=now_ms)]


def find_excess(db: Connection, *, now_ms: int) -> list[Step]:
    """Find devices with too much activity, and unused devices. Returns the steps that delete the excess.

    Unused devices registered themselves and have no users. Deleted are those not seen for a month, and all
    but the 50,000 seen last, since strangers can register any number. This reads whole tables and must not
    run inside a write.
    """
    kept = activity_module.KEPT_PER_DEVICE
    by_device = select(activity.c.device_id).group_by(activity.c.device_id)
    crowded = db.scalars(by_device.having(func.count() > kept).limit(FOUND_AT_ONCE)).all()
    seen_ms = func.coalesce(devices.c.last_seen_ms, devices.c.created_at_ms)
    # Order by id as well: machines that are online are seen at the same time.
    newest_first = select(seen_ms, devices.c.id).where(_UNUSED).order_by(seen_ms.desc(), devices.c.id.desc())
    first_too_many = db.execute(newest_first.offset(UNUSED_DEVICES_KEPT).limit(1)).one_or_none()
    is_over = seen_ms <= now_ms - UNUSED_DEVICES_KEPT_MS
    if first_too_many is not None:
        is_over = or_(is_over, tuple_(seen_ms, devices.c.id) <= tuple_(*map(literal, first_too_many)))
    unused = db.scalars(select(devices.c.id).where(_UNUSED).where(is_over).limit(FOUND_AT_ONCE)).all()
    return [
        *(partial(_thin_out, device_id=device_id) for device_id in crowded),
        *(partial(_forget_devices, ids=ids) for ids in chunks(unused, DEVICES_AT_ONCE)),
    ]


def prune(db: Connection, steps: list[Step]) -> bool:
    """Run some of these steps in a short transaction, and remove completed ones. True if any is left."""
    watch = Stopwatch()
    while steps:
        if not steps[-1](db):
            steps.pop()
        if watch.is_over:
            break
    return bool(steps)


def _delete_some(db: Connection, table: Table, is_over: ColumnElement[bool]) -> bool:
    """Delete rows of a table. True if more may be left."""
    key = tuple_(*table.primary_key)
    some = select(*table.primary_key).where(is_over).limit(ROWS_AT_ONCE)
    # `is_over` again: PostgreSQL checks it on rows that a concurrent writer has prolonged, but not `some`.
    return db.execute(delete(table).where(key.in_(some)).where(is_over)).rowcount >= ROWS_AT_ONCE


def _thin_out(db: Connection, device_id: str) -> bool:
    """Delete the oldest entries of a device that has too many. True if more may be left."""
    of_device = activity.c.device_id == device_id
    newest_first = select(activity.c.id).where(of_device).order_by(activity.c.id.desc())
    newest_too_many = db.scalar(newest_first.offset(activity_module.KEPT_PER_DEVICE).limit(1))
    if newest_too_many is None:
        return False
    return _delete_some(db, activity, and_(of_device, activity.c.id <= newest_too_many))


def _forget_devices(db: Connection, ids: Sequence[str]) -> bool:
    """Delete devices that are still unused."""
    # Before the DELETE looks for users and tokens: it does not see those added while it waits for a device.
    lock_devices(db, ids)
    forgotten = delete(devices).where(devices.c.id.in_(ids)).where(_UNUSED)
    gone = db.scalars(forgotten.returning(devices.c.id)).all()
    # The next users of these ids must not read earlier activity.
    forget_activity(db, *gone)
    return False
