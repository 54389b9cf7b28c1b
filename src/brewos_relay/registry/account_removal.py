"""Removing an account: close it at once, then give up its devices in steps.

`close_account` is one short transaction. It ends the sessions, password, identities and invites, and frees
the e-mail address. The account remains as a closed row while `remove_some` gives up its devices. The
housekeeping of a server finishes an interrupted removal.
"""

from typing import Final

from sqlalchemy import Connection, bindparam, delete, select, update

from brewos_relay.registry.access import leave_some
from brewos_relay.registry.accounts import find_user
from brewos_relay.registry.bulk import Stopwatch
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.invites import forget_invites
from brewos_relay.registry.schema import identities, known_networks, redeemed_invites, sessions, users

DEVICES_AT_ONCE: Final = 50
"""Devices in one set of statements. Each may have 5,000 entries of activity."""

_CLOSED: Final = select(users.c.id).where(users.c.removed_at_ms.is_not(None)).order_by(users.c.id)
_LOCKED: Final = (
    select(users.c.removed_at_ms).where(users.c.id == bindparam("of_user")).with_for_update(key_share=True)
)


def close_account(db: Connection, user_id: str, *, now_ms: int) -> bool:
    """Close an account, so that its user cannot sign in any more. False if there is none."""
    db.execute(_LOCKED, {"of_user": user_id})
    user = find_user(db, user_id)
    if user is None:
        return False
    forget_invites(db, user)
    for table in (sessions, identities, redeemed_invites, known_networks):
        db.execute(delete(table).where(table.c.user_id == user_id))
    nobodys = f"removed {user_id}"
    gone = {"email": nobodys, "email_key": nobodys, "name": None, "picture_url": None, "password_hash": None}
    closed = update(users).where(users.c.id == user_id)
    db.execute(closed.values(**gone, is_admin=False, removed_at_ms=now_ms))
    # Before the devices are given up: apps learn that the account is gone, and do not retry.
    publish_change(db, "user_removed", user_id=user_id, now_ms=now_ms)
    return True


def closed_accounts(db: Connection) -> list[str]:
    """List the accounts that are closed and not yet removed."""
    return list(db.scalars(_CLOSED))


def remove_some(db: Connection, user_id: str, *, now_ms: int) -> bool:
    """Give up some devices of a closed account, then remove the account. True while there is more to do."""
    if db.scalar(_LOCKED, {"of_user": user_id}) is None:
        return False
    watch = Stopwatch()
    left = 0
    while count := leave_some(db, user_id, at_most=DEVICES_AT_ONCE, now_ms=now_ms):
        left += count
        if watch.is_over:
            break
    if left:  # a token without a session may have attached clients meanwhile
        publish_change(db, "user_removed", user_id=user_id, now_ms=now_ms)
    if count:
        return True
    db.execute(delete(users).where(users.c.id == user_id))
    return False
