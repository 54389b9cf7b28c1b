"""Subscriptions, preferences, and notifications that are sent once."""

from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, delete, insert, select, update

from brewos_relay.errors import TokenRejected
from brewos_relay.registry import push
from brewos_relay.registry.access import give
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.push import Subscription
from brewos_relay.registry.records import NewDevice
from brewos_relay.registry.schema import (
    device_users,
    devices,
    push_devices,
    push_subscriptions,
    sessions,
    users,
)
from support.registry_files import NOW_MS

KITCHEN, OFFICE = "BRW-0000001A", "BRW-0000002B"


@pytest.fixture(autouse=True)
def household(db: Connection) -> None:
    """Two accounts with a session each; both machines belong to ada, and bob may use the kitchen's."""
    add_devices(db, [NewDevice(id=each, key_hash=b"k" * 32) for each in (KITCHEN, OFFICE)], now_ms=NOW_MS)
    for name in ("ada", "bob"):
        email = f"{name}@example.com"
        row = {"id": name, "email": email, "email_key": email, "is_admin": False}
        db.execute(insert(users), {**row, "created_at_ms": NOW_MS})
        add_session(db, name)
        give(db, KITCHEN, name, role="owner", now_ms=NOW_MS)
    give(db, OFFICE, "ada", role="owner", now_ms=NOW_MS)


def add_session(db: Connection, name: str, user_id: str = "") -> None:
    times = {"created_at_ms": NOW_MS, "used_at_ms": NOW_MS, "expires_at_ms": NOW_MS + 1000}
    db.execute(insert(sessions), {"id": name, "user_id": user_id or name, **times})


def subscription(number: int, user_id: str = "ada") -> Subscription:
    endpoint = f"https://push.example/{number}"
    return Subscription(
        id=number.to_bytes(32, "big"), user_id=user_id, endpoint=endpoint, p256dh=b"p" * 65, auth=b"a" * 16
    )


def subscribe(
    db: Connection,
    number: int,
    user_id: str = "ada",
    *,
    session_id: str = "",
    device_ids: Sequence[str] = (KITCHEN,),
    at_ms: int = NOW_MS,
) -> None:
    push.subscribe(
        db,
        subscription(number, user_id),
        session_id=session_id or user_id,
        device_ids=device_ids,
        now_ms=at_ms,
    )


def recipients(db: Connection, device_id: str = KITCHEN, *, now_ms: int = NOW_MS) -> list[int]:
    found = push.recipients_of(db, device_id, now_ms=now_ms)
    return [int.from_bytes(each.subscription.id, "big") for each in found]


def test_subscriptions_are_kept_by_user_and_device(db: Connection) -> None:
    subscribe(db, 1)
    subscribe(db, 1, device_ids=[OFFICE])
    subscribe(db, 2, "bob", at_ms=NOW_MS + 1)
    assert (recipients(db), recipients(db, OFFICE)) == ([1, 2], [1])
    assert push.recipients_of(db, KITCHEN, now_ms=NOW_MS)[0].subscription == subscription(1)
    assert push.watched_devices(db) == {KITCHEN, OFFICE}
    assert not push.unsubscribe(db, subscription(2).id, user_id="ada")
    assert push.unsubscribe(db, subscription(1).id, user_id="ada")
    assert (recipients(db), push.watched_devices(db)) == ([2], {KITCHEN})


def test_one_device_can_leave_a_subscription(db: Connection) -> None:
    subscribe(db, 1, device_ids=[KITCHEN, OFFICE])
    assert not push.unsubscribe(db, subscription(1).id, user_id="bob", device_id=OFFICE)
    assert push.subscriptions_of(db, "ada") == {subscription(1).id: (NOW_MS, [KITCHEN, OFFICE])}
    assert push.unsubscribe(db, subscription(1).id, user_id="ada", device_id=OFFICE)
    assert not push.unsubscribe(db, subscription(1).id, user_id="ada", device_id=OFFICE)
    assert push.unsubscribe(db, subscription(1).id, user_id="ada", device_id=KITCHEN)
    assert push.subscriptions_of(db, "ada") == {subscription(1).id: (NOW_MS, [])}
    assert push.subscriptions_of(db, "bob") == {}


def test_access_and_session_are_checked_when_a_notification_is_sent(db: Connection) -> None:
    subscribe(db, 1)
    subscribe(db, 2, "bob", device_ids=[KITCHEN, OFFICE], at_ms=NOW_MS + 1)
    assert recipients(db, OFFICE) == []  # bob has no access
    own = device_users.c
    db.execute(update(device_users).where(own.user_id == "bob").values(until_ms=NOW_MS + 10))
    assert (recipients(db), recipients(db, now_ms=NOW_MS + 10)) == ([1, 2], [1])
    db.execute(delete(device_users).where(own.user_id == "bob"))
    assert recipients(db) == [1]
    assert recipients(db, now_ms=NOW_MS + 1000) == []  # the session has expired


@pytest.mark.parametrize("ended", [sessions, users])
def test_subscription_ends_with_its_session_and_its_account(db: Connection, ended: object) -> None:
    subscribe(db, 1)
    push.set_preferences(db, "ada", {"machineReady": False})
    db.execute(delete(ended).where(ended.c.id == "ada"))  # type: ignore[attr-defined, arg-type]
    assert db.execute(select(push_subscriptions.c.id)).all() == []
    assert db.execute(select(push_devices)).all() == []


def test_next_user_of_a_browser_takes_its_endpoint_over(db: Connection) -> None:
    subscribe(db, 1, device_ids=[KITCHEN, OFFICE])
    subscribe(db, 1, "bob")
    (only,) = push.recipients_of(db, KITCHEN, now_ms=NOW_MS)
    assert only.subscription.user_id == "bob"
    assert push.watched_devices(db) == {KITCHEN}
    add_session(db, "bob again", "bob")
    subscribe(db, 1, "bob", session_id="bob again")
    db.execute(delete(sessions).where(sessions.c.id == "bob"))
    assert recipients(db) == [1]


def test_numbers_are_bounded(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(push.SUBSCRIPTIONS_AT_MOST + 5):
        subscribe(db, number, at_ms=NOW_MS + number)
    assert recipients(db) == list(range(5, push.SUBSCRIPTIONS_AT_MOST + 5))
    monkeypatch.setattr(push, "DEVICES_AT_MOST", 3)
    for number in range(5):
        subscribe(db, 99, "bob", device_ids=[f"BRW-{number:08X}"])
    assert len(push.watched_devices(db) - {KITCHEN}) == 3
    subscribe(db, 99, "bob", device_ids=[f"BRW-{number:08X}" for number in range(10, 20)])
    assert push.watched_devices(db) == {KITCHEN, "BRW-0000000A", "BRW-0000000B", "BRW-0000000C"}


def test_subscription_needs_a_session(db: Connection) -> None:
    with pytest.raises(TokenRejected):
        push.subscribe(db, subscription(1), session_id=None, device_ids=[KITCHEN], now_ms=NOW_MS)


def test_preferences_are_those_of_the_user(db: Connection) -> None:
    push.set_preferences(db, "ada", {"machineReady": False, "brewComplete": True})
    push.set_preferences(db, "ada", {"machineReady": True})
    assert push.preferences_of(db, "ada") == {"machineReady": True, "brewComplete": True}
    assert push.preferences_of(db, "bob") == {}
    subscribe(db, 1)
    subscribe(db, 2, "bob", at_ms=NOW_MS + 1)
    chosen = [dict(each.chosen) for each in push.recipients_of(db, KITCHEN, now_ms=NOW_MS)]
    assert chosen == [{"machineReady": True, "brewComplete": True}, {}]


def test_notification_is_claimed_once_in_its_time(db: Connection) -> None:
    def claim(device_id: str, kind: str, *, at_ms: int, unless_since_ms: int) -> bool:
        return push.claim_notification(db, device_id, kind, now_ms=at_ms, unless_since_ms=unless_since_ms)

    assert claim(KITCHEN, "machineReady", at_ms=NOW_MS, unless_since_ms=NOW_MS - 600)
    assert not claim(KITCHEN, "machineReady", at_ms=NOW_MS + 600, unless_since_ms=NOW_MS)
    assert claim(OFFICE, "machineReady", at_ms=NOW_MS, unless_since_ms=NOW_MS - 600)
    assert claim(KITCHEN, "waterEmpty", at_ms=NOW_MS, unless_since_ms=NOW_MS - 600)
    assert claim(KITCHEN, "machineReady", at_ms=NOW_MS + 601, unless_since_ms=NOW_MS + 1)
    assert not claim(KITCHEN, "machineReady", at_ms=NOW_MS + 602, unless_since_ms=NOW_MS + 2)


def test_dead_subscriptions_are_removed(db: Connection) -> None:
    subscribe(db, 1)
    push.remove_subscription(db, subscription(1).id)
    assert recipients(db) == []
    subscribe(db, 2)
    later = NOW_MS
    for _ in range(push.FAILURES_AT_MOST - 1):
        push.record_failure(db, subscription(2).id, now_ms=later)
        assert recipients(db, now_ms=later) == []  # it is asked later
        later = db.scalars(select(push_subscriptions.c.retry_at_ms)).one()
        db.execute(update(sessions).values(expires_at_ms=later + 1000))
        assert recipients(db, now_ms=later) == [2]
    assert later < NOW_MS + 2 * 24 * 3600 * 1000
    push.record_failure(db, subscription(2).id, now_ms=later)
    assert db.execute(select(push_subscriptions.c.id)).all() == []
    push.record_failure(db, subscription(2).id, now_ms=later)


def test_failing_subscription_is_not_asked_sooner_because_it_subscribes_again(db: Connection) -> None:
    subscribe(db, 1)
    push.record_failure(db, subscription(1).id, now_ms=NOW_MS)
    subscribe(db, 1)
    assert recipients(db) == []


def test_success_forgets_failures(db: Connection) -> None:
    subscribe(db, 1)
    push.record_failure(db, subscription(1).id, now_ms=NOW_MS)
    push.record_success(db, subscription(1).id)
    assert recipients(db) == [1]


def test_server_key_is_made_once(db: Connection) -> None:
    assert push.find_server_key(db) is None
    assert push.keep_server_key(db, b"1" * 32) == b"1" * 32
    assert push.keep_server_key(db, b"2" * 32) == b"1" * 32
    assert push.find_server_key(db) == b"1" * 32


def test_long_absences_are_found_once(db: Connection) -> None:
    def find() -> list[tuple[str, int]]:
        return push.find_long_offline(
            db, kind="machineOffline", seen_before_ms=NOW_MS, seen_after_ms=NOW_MS - 100
        )

    def see(at_ms: int) -> None:
        db.execute(update(devices).values(last_seen_ms=at_ms))

    subscribe(db, 1)
    assert find() == []
    see(NOW_MS - 50)
    assert find() == [(KITCHEN, NOW_MS - 50)]
    assert push.claim_notification(db, KITCHEN, "machineOffline", unless_since_ms=NOW_MS - 50, now_ms=NOW_MS)
    assert find() == []
    see(NOW_MS + 1)
    assert find() == []
    see(NOW_MS - 100)
    assert find() == []
