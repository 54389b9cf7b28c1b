"""Known networks: each account's networks of recent sign-ins."""

from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from brewos_relay.registry.schema import known_networks, users

KEPT_MS: Final = 180 * 24 * 3600 * 1000
KEPT_PER_ACCOUNT: Final = 32
"""Each account has its own list, so no account can evict the networks of another."""
RECORDED_EVERY_MS: Final = 24 * 3600 * 1000
"""How old an entry must be before a sign-in renews it."""
_NETWORK_CHARS: Final = 64

_SEEN: Final = (
    select(known_networks.c.seen_at_ms)
    .where(known_networks.c.user_id == bindparam("of_user"))
    .where(known_networks.c.network == bindparam("in_network"))
)
_LOCKED: Final = (
    select(users.c.id)
    .where(users.c.id == bindparam("of_user"))
    .where(users.c.removed_at_ms.is_(None))
    .with_for_update()
)


def seen_at(db: Connection, user_id: str, network: str) -> int | None:
    """Return when an account was last signed in to from a network, in Unix ms. None if it is not listed."""
    return db.scalar(_SEEN, {"of_user": user_id, "in_network": network[:_NETWORK_CHARS]})


def is_known(seen_ms: int | None, *, now_ms: int) -> bool:
    """Tell whether a sign-in at that time makes a network known: it was within the last 180 days."""
    return seen_ms is not None and seen_ms > now_ms - KEPT_MS


def is_due(seen_ms: int | None, *, now_ms: int) -> bool:
    """Tell whether a sign-in should be recorded: once a day for each network."""
    return seen_ms is None or seen_ms <= now_ms - RECORDED_EVERY_MS


def record_network(db: Connection, user_id: str, network: str, *, now_ms: int) -> None:
    """Record a sign-in. Each account keeps the 32 networks that were used last."""
    if db.scalar(_LOCKED, {"of_user": user_id}) is None:
        return  # the account was removed meanwhile
    values = {"user_id": user_id, "network": network[:_NETWORK_CHARS], "seen_at_ms": now_ms}
    mine = known_networks.c.user_id == user_id
    if seen_at(db, user_id, network) is None:
        db.execute(insert(known_networks), values)
    else:
        this = mine & (known_networks.c.network == values["network"])
        db.execute(update(known_networks).where(this).values(seen_at_ms=now_ms))
    newest_first = (
        select(known_networks.c.network)
        .where(mine)
        .order_by(known_networks.c.seen_at_ms.desc(), known_networks.c.network)
    )
    too_many = newest_first.offset(KEPT_PER_ACCOUNT)
    for old in db.scalars(too_many.limit(KEPT_PER_ACCOUNT)).all():
        db.execute(delete(known_networks).where(mine).where(known_networks.c.network == old))
