"""Removing an account, also one with many devices, in steps."""

from typing import Any

import pytest
import trio
import trio.testing
from sqlalchemy import Connection, func, select

from brewos_relay.errors import SignInRefused, TokenRejected
from brewos_relay.registry import account_removal, bulk
from brewos_relay.registry.access import access_of, give, users_of
from brewos_relay.registry.account_removal import close_account, closed_accounts, remove_some
from brewos_relay.registry.accounts import (
    add_user,
    all_users,
    find_user,
    find_user_by_email,
    password_hash_of,
    set_admin,
    set_password_hash,
)
from brewos_relay.registry.activity import activity_of, add_activity
from brewos_relay.registry.bulk import PAUSE_S, run_steps
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_overview import totals
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.invites import add_invite, redeem_invite
from brewos_relay.registry.login_sessions import end_sessions, find_sessions, open_session
from brewos_relay.registry.records import Activity, Identity, NewDevice, User
from brewos_relay.registry.schema import device_users, users
from brewos_relay.registry.sharing import new_share, shares_of
from brewos_relay.registry.sign_in import sign_in
from brewos_relay.registry.store import Store, open_store
from support.change_rows import read_changes
from support.registry import NOW_MS, device_id, new_device
from support.registry_files import hash_of

DEADLINE_S = 30.0
DAY_MS = 24 * 3600 * 1000
MANY = 130


def begin(db: Connection, user: User, session_id: str = "s") -> None:
    open_session(
        db,
        session_id=session_id,
        user_id=user.id,
        refresh_hash=hash_of(session_id),
        user_agent=None,
        address=None,
        now_ms=NOW_MS,
        expires_at_ms=NOW_MS + DAY_MS,
    )


def make(db: Connection, email: str = "ada@example.org", *, devices: int = 0) -> User:
    user = add_user(db, email=email, name="Ada", now_ms=NOW_MS)
    if devices:
        add_devices(db, [new_device(number, user.id) for number in range(devices)], now_ms=NOW_MS)
    return user


def owned(db: Connection) -> int:
    return db.scalar(select(func.count()).select_from(device_users)) or 0


def test_closed_account_cannot_sign_in(db: Connection) -> None:
    ada = make(db, devices=2)
    set_admin(db, ada.id, True)
    set_password_hash(db, ada.id, "hash")
    google = Identity(issuer="https://g", subject="1", email=ada.email, email_verified=True)
    assert sign_in(db, google, open_to_all=False, now_ms=NOW_MS).id == ada.id
    begin(db, ada)
    until: dict[str, Any] = {"is_admin": True, "expires_at_ms": NOW_MS + DAY_MS, "now_ms": NOW_MS}
    add_invite(db, email=ada.email, token_hash=hash_of("for her"), **until)
    add_invite(db, email="eve@example.org", token_hash=hash_of("by her"), created_by=ada.id, **until)
    assert close_account(db, ada.id, now_ms=NOW_MS)
    assert find_sessions(db, ["s"], now_ms=NOW_MS) == {}
    assert find_user(db, ada.id) is find_user_by_email(db, ada.email) is None
    assert password_hash_of(db, ada.email) is None
    assert all_users(db) == []
    assert totals(db).users == 0
    assert not set_password_hash(db, ada.id, "new")
    assert not set_admin(db, ada.id, True)
    for token in ("for her", "by her"):
        assert redeem_invite(db, hash_of(token), now_ms=NOW_MS) is None
    with pytest.raises(SignInRefused):
        sign_in(db, google, open_to_all=False, now_ms=NOW_MS)
    with pytest.raises(TokenRejected, match="removed"):
        begin(db, ada, "late")
    assert [change.kind for change in read_changes(db, 0)][-1] == "user_removed"
    assert not close_account(db, ada.id, now_ms=NOW_MS)
    assert not close_account(db, "unknown", now_ms=NOW_MS)
    # The address is free, and the new account is a different one.
    assert make(db).id != ada.id
    [first, *_] = users_of(db, device_id(0), now_ms=NOW_MS)
    assert (first.user_id, first.email) == (ada.id, None)


def test_removed_account_leaves_its_devices(db: Connection) -> None:
    ada = make(db)
    add_devices(
        db,
        [
            NewDevice(id=device_id(1), key_hash=hash_of("k"), name="Mine", user_id=ada.id),
            NewDevice(
                id=device_id(2), key_hash=hash_of("k"), name="Ours", user_id=ada.id, more_user_ids=("bob",)
            ),
            NewDevice(id=device_id(3), key_hash=hash_of("k"), name="Bob's", user_id="bob"),
        ],
        now_ms=NOW_MS,
    )
    give(db, device_id(1), "guest", role="viewer", now_ms=NOW_MS)
    give(db, device_id(3), ada.id, role="viewer", until_ms=NOW_MS + 1, now_ms=NOW_MS)
    for number in (1, 2):
        add_activity(db, [Activity(device_id=device_id(number), at_ms=NOW_MS, kind="online")])
        new_share(
            db,
            share_id=f"s{number}",
            device_id=device_id(number),
            token_hash=hash_of(f"t{number}"),
            code_hash=hash_of(f"c{number}"),
            role="member",
            until_ms=None,
            uses_left=None,
            created_by=ada.id,
            now_ms=NOW_MS,
            expires_at_ms=NOW_MS + DAY_MS,
        )
    assert close_account(db, ada.id, now_ms=NOW_MS)
    while remove_some(db, ada.id, now_ms=NOW_MS):
        pass
    assert owned(db) == 2
    pairs = [("bob", device_id(2)), ("bob", device_id(3))]
    assert set(access_of(db, pairs, now_ms=NOW_MS)) == set(pairs)
    names = {device.id: device.name for device in find_devices(db, [device_id(n) for n in (1, 2, 3)])}
    assert names == {device_id(1): None, device_id(2): "Ours", device_id(3): "Bob's"}
    assert activity_of(db, device_id(1)) == []
    assert [entry.kind for entry in activity_of(db, device_id(2))] == ["user_removed", "shared", "online"]
    assert shares_of(db, device_id(1), now_ms=NOW_MS) == []
    told = {(change.kind, change.device_id, change.user_id) for change in read_changes(db, 0)}
    assert {("access_changed", device_id(1), "guest"), ("user_removed", None, ada.id)} <= told
    assert db.scalar(select(func.count()).select_from(users)) == 0
    assert closed_accounts(db) == []
    assert not remove_some(db, ada.id, now_ms=NOW_MS)


def test_large_account_is_removed_in_bounded_steps(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "STEP_S", 0.0)
    monkeypatch.setattr(account_removal, "DEVICES_AT_ONCE", 20)
    with database.writing() as db:
        ada = make(db, devices=MANY)
        assert close_account(db, ada.id, now_ms=NOW_MS)
    counts = []
    more = True
    while more:
        with database.writing() as db:
            more = remove_some(db, ada.id, now_ms=NOW_MS)
            counts.append(owned(db))
    assert counts == [110, 90, 70, 50, 30, 10, 0, 0]


def test_a_removal_by_a_command_leaves_time_for_other_writers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(bulk, "STEP_S", 0.0)
    monkeypatch.setattr(account_removal, "DEVICES_AT_ONCE", 50)
    with database.writing() as db:
        ada, bob = make(db, devices=MANY), make(db, "bob@example.org")
        begin(db, bob, "bob's")
        close_account(db, ada.id, now_ms=NOW_MS)

    def pause(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 1:
            with database.writing(within_s=0.5) as db:  # a lock that was held would be a failure here
                assert 0 < owned(db) < MANY
                assert end_sessions(db, bob.id, now_ms=NOW_MS) == 1

    monkeypatch.setattr("brewos_relay.registry.bulk.sleep", pause)
    run_steps(database, lambda db: remove_some(db, ada.id, now_ms=NOW_MS))
    assert pauses == [PAUSE_S] * 3
    with database.reading() as db:
        assert owned(db) == 0


async def test_a_server_finishes_a_removal_that_was_interrupted(url: str) -> None:
    with Database.open(url) as database, database.writing() as db:
        ada = make(db, devices=MANY)
        close_account(db, ada.id, now_ms=NOW_MS)
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            while await store.read(closed_accounts):  # noqa: ASYNC110  another task removes it
                await trio.sleep(0.01)
            assert await store.read(owned) == 0


async def test_housekeeping_finishes_removals_that_take_too_long(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "STEP_S", 0.0)
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            await no_work_left(store)
            with Database.open(url) as database, database.writing() as db:
                ada = make(db, devices=MANY)
                close_account(db, ada.id, now_ms=NOW_MS)
            await store.finish_removals(within_s=0)
            while await store.read(owned):  # noqa: ASYNC110  another task removes it
                await trio.sleep(0.01)


async def no_work_left(store: Store) -> None:
    """Wait until the first housekeeping after the start has finished."""
    for _ in range(3):
        await store.read(closed_accounts)
        await trio.testing.wait_all_tasks_blocked(0.05)
