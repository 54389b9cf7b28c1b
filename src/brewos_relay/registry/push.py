"""Push notifications: subscriptions of browsers, preferences of users, and what was sent."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, delete, exists, insert, or_, select, update

from brewos_relay.errors import TokenRejected
from brewos_relay.registry.schema import (
    device_users,
    devices,
    push_devices,
    push_keys,
    push_preferences,
    push_sent,
    push_subscriptions,
    sessions,
)
from brewos_relay.registry.upserts import insert_into

SUBSCRIPTIONS_AT_MOST: Final = 20
"""How many subscriptions a user may have. A new one removes the oldest."""
DEVICES_AT_MOST: Final = 100
"""How many devices a subscription may be for."""
FAILURES_AT_MOST: Final = 10
"""After so many failures in a row, a subscription is removed."""
WATCHED_AT_MOST: Final = 100_000

_RETRY_MS: Final = 60_000
_LATEST_RETRY_MS: Final = 24 * 3600 * 1000

_ALL: Final = push_subscriptions.c
_MAY_STILL: Final = and_(
    device_users.c.user_id == _ALL.user_id,
    device_users.c.device_id == push_devices.c.device_id,
    or_(device_users.c.until_ms.is_(None), device_users.c.until_ms > bindparam("now_ms")),
)
_RECIPIENTS: Final = (
    select(_ALL.id, _ALL.user_id, _ALL.endpoint, _ALL.p256dh, _ALL.auth, _ALL.session_id)
    .join_from(push_devices, push_subscriptions, _ALL.id == push_devices.c.subscription_id)
    .join(sessions, sessions.c.id == _ALL.session_id)
    .join(device_users, _MAY_STILL)
    .where(push_devices.c.device_id == bindparam("of_device"))
    .where(sessions.c.expires_at_ms > bindparam("now_ms"))
    .where(_ALL.retry_at_ms <= bindparam("now_ms"))
    .order_by(_ALL.created_at_ms, _ALL.id)
)
_PREFERENCES: Final = select(push_preferences).where(
    push_preferences.c.user_id.in_(bindparam("of_users", expanding=True))
)
_OLDEST: Final = (
    select(_ALL.id)
    .where(_ALL.user_id == bindparam("of_user"))
    .order_by(_ALL.created_at_ms.desc(), _ALL.id)
    .offset(SUBSCRIPTIONS_AT_MOST)
)
_SUBSCRIBED: Final = (
    select(push_devices.c.device_id)
    .where(push_devices.c.subscription_id == bindparam("of_subscription"))
    .order_by(push_devices.c.device_id)
)
_OF_USER: Final = (
    select(_ALL.id, _ALL.created_at_ms, push_devices.c.device_id)
    .join_from(push_subscriptions, push_devices, push_devices.c.subscription_id == _ALL.id, isouter=True)
    .where(_ALL.user_id == bindparam("of_user"))
    .order_by(_ALL.created_at_ms, _ALL.id, push_devices.c.device_id)
)
_WATCHED: Final = select(push_devices.c.device_id).distinct().limit(WATCHED_AT_MOST)
_LONG_OFFLINE: Final = (
    select(devices.c.id, devices.c.last_seen_ms)
    .where(devices.c.last_seen_ms <= bindparam("seen_before_ms"))
    .where(devices.c.last_seen_ms > bindparam("seen_after_ms"))
    .where(exists().where(push_devices.c.device_id == devices.c.id))
    .where(
        ~exists()
        .where(push_sent.c.device_id == devices.c.id)
        .where(push_sent.c.kind == bindparam("of_kind"))
        .where(push_sent.c.at_ms >= devices.c.last_seen_ms)
    )
    .order_by(devices.c.last_seen_ms)
    .limit(1000)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A browser that gets notifications. `id` is SHA-256 of the endpoint."""

    id: bytes
    user_id: str
    endpoint: str
    p256dh: bytes
    auth: bytes


@dataclass(frozen=True, slots=True)
class Recipient:
    """A subscription of a user with access to a device, its login session, and the user's preferences."""

    subscription: Subscription
    session_id: str
    chosen: Mapping[str, bool]


def find_server_key(db: Connection) -> bytes | None:
    """Return the private key of the servers; None if there is none yet."""
    key: bytes | None = db.scalar(select(push_keys.c.private_key))
    return key


def keep_server_key(db: Connection, new_key: bytes) -> bytes:
    """Return the private key of the servers, which is `new_key` if there was none."""
    row = {"id": 1, "private_key": new_key}
    db.execute(insert_into(push_keys, db.dialect.name).values(row).on_conflict_do_nothing())
    return find_server_key(db) or new_key


def subscribe(
    db: Connection,
    subscription: Subscription,
    *,
    session_id: str | None,
    device_ids: Sequence[str],
    now_ms: int,
) -> None:
    """Add devices to a subscription, and the subscription itself if it is new.

    A browser has one endpoint for all of its users: a subscription of another user or session gives way.
    Raises TokenRejected without a session.
    """
    if session_id is None:
        raise TokenRejected("notifications need a login session")
    taken = delete(push_subscriptions).where(_ALL.id == subscription.id)
    db.execute(taken.where(or_(_ALL.user_id != subscription.user_id, _ALL.session_id != session_id)))
    row = {
        "id": subscription.id,
        "session_id": session_id,
        "user_id": subscription.user_id,
        "endpoint": subscription.endpoint,
        "p256dh": subscription.p256dh,
        "auth": subscription.auth,
        "created_at_ms": now_ms,
        "failures": 0,
        "retry_at_ms": 0,
    }
    # Not its failures: a browser subscribes again with each page, and a push service that hangs stays one.
    changed = {name: row[name] for name in ("p256dh", "auth")}
    added = insert_into(push_subscriptions, db.dialect.name).values(row)
    db.execute(added.on_conflict_do_update(index_elements=[_ALL.id], set_=changed))
    known = db.scalars(_SUBSCRIBED, {"of_subscription": subscription.id}).all()
    others = [each for each in known if each not in device_ids]
    if excess := others[: max(0, len(others) + len(device_ids) - DEVICES_AT_MOST)]:
        of_this = push_devices.c.subscription_id == subscription.id
        db.execute(delete(push_devices).where(of_this, push_devices.c.device_id.in_(excess)))
    for device_id in device_ids[:DEVICES_AT_MOST]:
        device = {"subscription_id": subscription.id, "device_id": device_id}
        db.execute(insert_into(push_devices, db.dialect.name).values(device).on_conflict_do_nothing())
    too_many = db.scalars(_OLDEST, {"of_user": subscription.user_id}).all()
    if too_many:
        db.execute(delete(push_subscriptions).where(_ALL.id.in_(too_many)))


def unsubscribe(
    db: Connection, subscription_id: bytes, *, user_id: str, device_id: str | None = None
) -> bool:
    """Remove a subscription of a user, or one device from it. False if there is none."""
    own = (_ALL.id == subscription_id, _ALL.user_id == user_id)
    if device_id is None:
        return db.execute(delete(push_subscriptions).where(*own)).rowcount > 0
    device = (
        push_devices.c.subscription_id == subscription_id,
        push_devices.c.device_id == device_id,
        exists().where(*own),
    )
    return db.execute(delete(push_devices).where(*device)).rowcount > 0


def subscriptions_of(db: Connection, user_id: str) -> dict[bytes, tuple[int, list[str]]]:
    """List the subscriptions of a user: when each was made, and its devices."""
    found: dict[bytes, tuple[int, list[str]]] = {}
    for id_, created_at_ms, device_id in db.execute(_OF_USER, {"of_user": user_id}):
        devices_of_it = found.setdefault(id_, (created_at_ms, []))[1]
        if device_id is not None:
            devices_of_it.append(device_id)
    return found


def preferences_of(db: Connection, user_id: str) -> dict[str, bool]:
    """Return the preferences that a user has set, by kind."""
    return _preferences(db, [user_id]).get(user_id, {})


def set_preferences(db: Connection, user_id: str, chosen: Mapping[str, bool]) -> None:
    """Set preferences of a user."""
    rows = [{"user_id": user_id, "kind": kind, "wanted": wanted} for kind, wanted in chosen.items()]
    own = push_preferences.c
    replaced = delete(push_preferences).where(own.user_id == user_id, own.kind.in_(list(chosen)))
    db.execute(replaced)
    db.execute(insert(push_preferences), rows)


def recipients_of(db: Connection, device_id: str, *, now_ms: int) -> list[Recipient]:
    """Find the subscriptions for a device whose sessions last and whose users have access to it.

    The oldest come first.
    """
    found = db.execute(_RECIPIENTS, {"of_device": device_id, "now_ms": now_ms}).all()
    chosen = _preferences(db, {row[1] for row in found})
    return [
        Recipient(
            Subscription(id=row[0], user_id=row[1], endpoint=row[2], p256dh=row[3], auth=row[4]),
            row[5],
            chosen.get(row[1], {}),
        )
        for row in found
    ]


def claim_notification(
    db: Connection, device_id: str, kind: str, *, unless_since_ms: int, now_ms: int
) -> bool:
    """Record that a notification is being sent. False if one was sent since `unless_since_ms`.

    Servers that share the registry take turns, so one of them sends it.
    """
    row = {"device_id": device_id, "kind": kind, "at_ms": now_ms}
    claimed = (
        insert_into(push_sent, db.dialect.name)
        .values(row)
        .on_conflict_do_update(
            index_elements=[push_sent.c.device_id, push_sent.c.kind],
            set_={"at_ms": now_ms},
            where=push_sent.c.at_ms < unless_since_ms,
        )
        .returning(push_sent.c.at_ms)
    )
    return db.execute(claimed).first() is not None


def remove_subscription(db: Connection, subscription_id: bytes) -> None:
    """Remove a subscription that its push service does not know any more."""
    db.execute(delete(push_subscriptions).where(_ALL.id == subscription_id))


def record_failure(db: Connection, subscription_id: bytes, *, now_ms: int) -> None:
    """Record that a push service failed.

    It is asked again later, each time after twice as long, and in the end the subscription is removed.
    """
    failures = db.scalar(select(_ALL.failures).where(_ALL.id == subscription_id)) or 0
    if failures + 1 >= FAILURES_AT_MOST:
        remove_subscription(db, subscription_id)
        return
    wait_ms = min(_LATEST_RETRY_MS, _RETRY_MS * 2**failures)
    changed = {"failures": failures + 1, "retry_at_ms": now_ms + wait_ms}
    db.execute(update(push_subscriptions).where(_ALL.id == subscription_id).values(changed))


def record_success(db: Connection, subscription_id: bytes) -> None:
    """Forget the failures of a push service."""
    failed = update(push_subscriptions).where(_ALL.id == subscription_id, _ALL.failures > 0)
    db.execute(failed.values(failures=0, retry_at_ms=0))


def watched_devices(db: Connection) -> set[str]:
    """Find the devices that have subscriptions."""
    return set(db.scalars(_WATCHED))


def find_long_offline(
    db: Connection, *, kind: str, seen_before_ms: int, seen_after_ms: int
) -> list[tuple[str, int]]:
    """Find the devices with subscriptions that were last seen between two times, and when.

    Those that `kind` was sent about since are left out. A device that is online is seen once an hour only.
    """
    found = db.execute(
        _LONG_OFFLINE, {"seen_before_ms": seen_before_ms, "seen_after_ms": seen_after_ms, "of_kind": kind}
    )
    return [(row[0], row[1]) for row in found]


def _preferences(db: Connection, user_ids: Collection[str]) -> dict[str, dict[str, bool]]:
    chosen: dict[str, dict[str, bool]] = {}
    ids: Sequence[Any] = sorted(user_ids)
    for user_id, kind, wanted in db.execute(_PREFERENCES, {"of_users": ids}) if ids else ():
        chosen.setdefault(user_id, {})[kind] = wanted
    return chosen
