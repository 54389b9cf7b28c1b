import pytest
from sqlalchemy import Connection, Table, func, insert, select

from brewos_relay.registry import activity as activity_module
from brewos_relay.registry import bulk, housekeeping
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.activity import KEPT_MS, activity_of, add_activity
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.devices import add_devices, all_devices, record_seen
from brewos_relay.registry.housekeeping import CHANGES_KEPT_MS, UNUSED_DEVICES_KEPT_MS, expired, find_excess
from brewos_relay.registry.housekeeping import prune as prune_some
from brewos_relay.registry.login_sessions import find_sessions, open_session, refresh
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.registry.records import Activity
from brewos_relay.registry.schema import (
    activity,
    changes,
    claims,
    device_users,
    invites,
    redeemed_invites,
    refresh_tokens,
    sessions,
    shares,
    users,
)
from support.registry import NOW_MS, device_id, new_device, prune, run_all_steps

HASH = bytes(32)


def count(db: Connection, table: Table) -> int:
    return db.execute(select(func.count()).select_from(table)).scalar_one()


def test_expired_rows_are_deleted(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    user = {"id": "u", "email": "ada@example.org", "is_admin": False, "created_at_ms": 1}
    db.execute(insert(users), user)
    for number, end_ms in enumerate((NOW_MS, NOW_MS + 1)):
        hash_ = bytes([number]) * 32
        session = {"id": f"s{number}", "user_id": "u", "created_at_ms": 1, "used_at_ms": 1}
        db.execute(insert(sessions), {**session, "expires_at_ms": end_ms})
        db.execute(
            insert(refresh_tokens), {"token_hash": hash_, "session_id": f"s{number}", "expires_at_ms": end_ms}
        )
        invite = {"token_hash": hash_, "email": "x@example.org", "is_admin": False, "created_at_ms": 1}
        db.execute(insert(invites), {**invite, "expires_at_ms": end_ms})
        redeemed = {"token_hash": hash_, "nonce_hash": hash_, "user_id": "u"}
        db.execute(insert(redeemed_invites), {**redeemed, "expires_at_ms": end_ms})
        claim = {"device_id": device_id(1), "token_hash": hash_, "key_hash": HASH}
        db.execute(insert(claims), {**claim, "expires_at_ms": end_ms})
        share = {
            "id": f"{number}",
            "device_id": device_id(1),
            "token_hash": hash_,
            "code_hash": hash_,
            "role": "member",
            "created_by": "ada",
            "created_at_ms": 1,
        }
        db.execute(insert(shares), {**share, "expires_at_ms": end_ms})
        give(db, device_id(1), f"guest{number}", role="viewer", until_ms=end_ms, now_ms=1)
    prune(db, now_ms=NOW_MS)
    for table in (sessions, refresh_tokens, invites, redeemed_invites, claims, shares):
        assert count(db, table) == 1, table.name
    assert sorted(db.scalars(select(device_users.c.user_id))) == ["ada", "guest1"]
    assert count(db, users) == 1


def test_expired_refresh_tokens_are_deleted_while_their_session_continues(db: Connection) -> None:
    ada = add_user(db, email="ada@example.org", name=None, now_ms=NOW_MS)
    open_session(
        db,
        session_id="s",
        user_id=ada.id,
        refresh_hash=b"0" * 32,
        user_agent=None,
        address=None,
        now_ms=NOW_MS,
        expires_at_ms=NOW_MS + 10,
    )
    for number in (1, 2):
        assert refresh(
            db,
            b"%d" % (number - 1) * 32,
            successor_hash=b"%d" % number * 32,
            successor_salt=b"salt",
            now_ms=NOW_MS + number,
            grace_ms=9,
            expires_at_ms=NOW_MS + number + 10,
        )
    left = []
    for at_ms in (9, 10, 11):
        prune(db, now_ms=NOW_MS + at_ms)
        left.append({hash_[:1] for hash_ in db.scalars(select(refresh_tokens.c.token_hash))})
    # An exchanged token lives as long as its successor did at the exchange.
    assert left == [{b"0", b"1", b"2"}, {b"0", b"1", b"2"}, {b"1", b"2"}]
    assert find_sessions(db, ["s"], now_ms=NOW_MS + 11) != {}


def test_old_changes_are_deleted(db: Connection) -> None:
    for at_ms in (NOW_MS - CHANGES_KEPT_MS, NOW_MS - CHANGES_KEPT_MS + 1, NOW_MS):
        publish_change(db, "key_changed", now_ms=at_ms)
    prune(db, now_ms=NOW_MS)
    assert count(db, changes) == 2


def test_old_activity_is_deleted(db: Connection) -> None:
    for at_ms in (NOW_MS - KEPT_MS, NOW_MS - KEPT_MS + 1, NOW_MS):
        add_activity(db, [Activity(device_id=device_id(1), at_ms=at_ms, kind="online")])
    prune(db, now_ms=NOW_MS)
    assert count(db, activity) == 2


def test_newest_activity_of_each_device_is_kept(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity_module, "KEPT_PER_DEVICE", 10)
    for number, entries in ((1, 9), (2, 10), (3, 13)):
        id_ = device_id(number)
        add_activity(
            db, [Activity(device_id=id_, at_ms=NOW_MS + order, kind="online") for order in range(entries)]
        )
    prune(db, now_ms=NOW_MS)
    rows = db.execute(
        select(activity.c.device_id, func.min(activity.c.at_ms), func.count()).group_by(activity.c.device_id)
    )
    assert sorted(tuple(row) for row in rows) == [
        (device_id(1), NOW_MS, 9),
        (device_id(2), NOW_MS, 10),
        (device_id(3), NOW_MS + 3, 10),
    ]


def register(db: Connection, number: int, *, at_ms: int, until_ms: int = NOW_MS) -> None:
    register_pairing(
        db,
        device_id=device_id(number),
        key_hash=HASH,
        token_hash=HASH,
        now_ms=at_ms,
        expires_at_ms=until_ms,
    )


def test_unused_devices_not_seen_for_long_are_deleted(db: Connection) -> None:
    old_ms = NOW_MS - UNUSED_DEVICES_KEPT_MS
    for number in range(1, 8):
        register(db, number, at_ms=old_ms + (number == 5), until_ms=NOW_MS + (number == 3))
    give(db, device_id(4), "ada", role="owner", now_ms=NOW_MS)
    record_seen(db, {device_id(2): old_ms + 1, device_id(4): old_ms, device_id(6): old_ms})
    prune(db, now_ms=NOW_MS)
    assert [device.id for device in all_devices(db)] == [device_id(number) for number in (2, 3, 4, 5)]


def test_unused_devices_seen_last_are_kept(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "UNUSED_DEVICES_KEPT", 3)
    for number in range(1, 7):
        register(db, number, at_ms=NOW_MS - 100 + number)
    register(db, 7, at_ms=NOW_MS - 1000, until_ms=NOW_MS + 1)
    record_seen(db, {device_id(2): NOW_MS - 10})
    give(db, device_id(1), "ada", role="owner", now_ms=NOW_MS)
    prune(db, now_ms=NOW_MS)
    assert [device.id for device in all_devices(db)] == [device_id(number) for number in (1, 2, 5, 6, 7)]


def test_devices_seen_at_the_same_time_are_not_all_deleted(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "UNUSED_DEVICES_KEPT", 3)
    for number in range(1, 6):
        register(db, number, at_ms=NOW_MS - 100)
    prune(db, now_ms=NOW_MS)
    assert len(all_devices(db)) == 3


def test_many_unused_devices_are_deleted_in_steps(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "DEVICES_AT_ONCE", 2)
    monkeypatch.setattr(bulk, "STEP_S", 0.0)
    for number in range(1, 6):
        register(db, number, at_ms=NOW_MS - UNUSED_DEVICES_KEPT_MS)
    run_all_steps(db, expired(now_ms=NOW_MS))
    steps = find_excess(db, now_ms=NOW_MS)
    left = []
    while prune_some(db, steps):
        left.append(len(all_devices(db)))
    assert (left, all_devices(db)) == ([4, 2], [])


def test_many_rows_are_deleted_in_steps(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(bulk, "STEP_S", 0.0)
    monkeypatch.setattr(activity_module, "KEPT_PER_DEVICE", 1)
    old = [Activity(device_id=device_id(1), at_ms=1, kind="online")] * 5
    add_activity(db, old)
    steps = expired(now_ms=NOW_MS)
    left = [count(db, activity)]
    while prune_some(db, steps):
        left.append(count(db, activity))
    assert [rows for number, rows in enumerate(left) if rows not in left[:number]] == [5, 3, 1, 0]
    add_activity(db, [Activity(device_id=device_id(1), at_ms=NOW_MS, kind="online")] * 4)
    newest = activity_of(db, device_id(1))[0].id
    steps = find_excess(db, now_ms=NOW_MS)
    left = []
    while prune_some(db, steps):
        left.append(count(db, activity))
    assert left == [2]
    assert [entry.id for entry in activity_of(db, device_id(1))] == [newest], "the newest stays"


def test_device_paired_meanwhile_is_not_deleted(db: Connection) -> None:
    for number in (1, 2):
        register(db, number, at_ms=NOW_MS - UNUSED_DEVICES_KEPT_MS)
    run_all_steps(db, expired(now_ms=NOW_MS))
    steps = find_excess(db, now_ms=NOW_MS)
    give(db, device_id(1), "ada", role="owner", now_ms=NOW_MS)
    run_all_steps(db, steps)
    assert [device.id for device in all_devices(db)] == [device_id(1)]


def test_readded_device_has_no_earlier_activity(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "DEVICES_AT_ONCE", 2)
    for number in range(1, 5):
        register(db, number, at_ms=NOW_MS - UNUSED_DEVICES_KEPT_MS + (number == 2))
        entry = Activity(device_id=device_id(number), at_ms=NOW_MS - 1, kind="command", user_id="ada")
        add_activity(db, [entry])
    prune(db, now_ms=NOW_MS)
    add_devices(db, [new_device(number, "bob") for number in (1, 3, 4)], now_ms=NOW_MS)
    assert [len(activity_of(db, device_id(number))) for number in range(1, 5)] == [0, 1, 0, 0]


def test_device_added_by_hand_is_not_deleted(db: Connection) -> None:
    old_ms = NOW_MS - 10 * UNUSED_DEVICES_KEPT_MS
    add_devices(db, [new_device(1), new_device(2)], now_ms=old_ms)
    # Registering a token does not turn such a device into one that registered itself.
    register(db, 2, at_ms=old_ms, until_ms=old_ms + 1)
    prune(db, now_ms=NOW_MS)
    assert [device.id for device in all_devices(db)] == [device_id(1), device_id(2)]


def test_nothing_to_prune(db: Connection) -> None:
    prune(db, now_ms=NOW_MS)
