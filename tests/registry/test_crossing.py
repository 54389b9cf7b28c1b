"""What several writers do at the same time, where they can: on PostgreSQL, over connections of their own."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, insert

from brewos_relay.errors import DeviceExists, RegistryError, UserExists
from brewos_relay.registry.access import leave
from brewos_relay.registry.accounts import add_user, all_users
from brewos_relay.registry.bulk import Step
from brewos_relay.registry.change_feed import ChangeReader
from brewos_relay.registry.changes import publish_change, publish_changed_access
from brewos_relay.registry.database import Database, crossed
from brewos_relay.registry.devices import add_devices, all_devices, lock_device
from brewos_relay.registry.housekeeping import UNUSED_DEVICES_KEPT_MS, expired, find_excess
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.registry.pairing_tokens import tokens_of
from brewos_relay.registry.records import Identity
from brewos_relay.registry.schema import devices
from brewos_relay.registry.sign_in import sign_in
from brewos_relay.registry.store import Store, open_store
from support.change_rows import read_changes
from support.postgresql import PostgreSQL
from support.registry import NOW_MS, device_id, new_device, register, run_all_steps

pytestmark = pytest.mark.postgresql

DEADLINE_S = 30.0
ADA = Identity(
    issuer="https://accounts.example.org",
    subject="1",
    email="ada@example.org",
    email_verified=True,
    name="Ada",
    picture_url=None,
)


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
def follow(database: Database) -> Iterator[Callable[[], list[int]]]:
    """Follow changes like a server does. Returns a function that returns the ids of new ones."""
    with Database.open(database._engine.url.render_as_string(hide_password=False)) as server:
        with server.reading() as db:
            follower = ChangeReader(db)

        def follow() -> list[int]:
            with server.reading() as db:
                return [change.id for change in follower.read(db)]

        yield follow


# The feed of changes


def test_a_change_that_is_committed_after_a_later_one(
    database: Database, follow: Callable[[], list[int]]
) -> None:
    with database.writing() as slow:
        publish_change(slow, "access_changed", device_id=device_id(1), now_ms=1)
        with database.writing() as fast:
            publish_change(fast, "key_changed", device_id=device_id(2), now_ms=2)
        (later,) = follow()
        assert follow() == []
    (earlier,) = follow()
    assert earlier < later
    assert follow() == []


def test_change_started_before_the_server_is_read(database: Database) -> None:
    with database.writing() as slow:
        publish_change(slow, "access_changed", device_id=device_id(1), now_ms=1)
        with database.writing() as fast:
            publish_change(fast, "key_changed", device_id=device_id(2), now_ms=2)
        with database.reading() as db:
            follower = ChangeReader(db)
            assert follower.read(db) == []
    with database.reading() as db:
        assert [change.device_id for change in follower.read(db)] == [device_id(1)]
        assert follower.read(db) == []


def test_large_change_committed_after_a_small_one_is_read(
    database: Database, follow: Callable[[], list[int]]
) -> None:
    with database.writing() as slow:
        publish_changed_access(slow, [(device_id(number), "ada") for number in range(300)], now_ms=1)
        with database.writing() as fast:
            publish_change(fast, "key_changed", device_id=device_id(2), now_ms=2)
        assert len(follow()) == 1
    assert len(follow()) == 300
    assert follow() == []


def test_rolled_back_change_is_not_awaited(database: Database, follow: Callable[[], list[int]]) -> None:
    with contextlib.suppress(ZeroDivisionError), database.writing() as db:
        publish_change(db, "key_changed", now_ms=1)
        raise ZeroDivisionError
    with database.writing() as db:
        publish_change(db, "key_changed", now_ms=1)
    assert len(follow()) == 1
    assert follow() == []
    with database.reading() as db:
        assert len(read_changes(db, 0)) == 1


# Concurrent writers with conflicts or deadlocks


async def cross(
    store: Store,
    url: str,
    postgresql: PostgreSQL,
    first: Callable[[Connection], object],
    second: Callable[..., object],
    *args: Any,
    **kwargs: Any,
) -> list[object]:
    """Run a concurrent change while a server's change waits for it.

    Returns the result of the server's change.
    """
    outcome: list[object] = []

    async def write() -> None:
        outcome.append(await store.write(second, *args, **kwargs))

    with Database.open(url) as other:
        async with trio.open_nursery() as nursery:
            with other.writing() as db:
                first(db)
                nursery.start_soon(write)
                await trio.to_thread.run_sync(postgresql.wait_until_one_waits)
    return outcome


async def test_concurrent_sign_ins_create_one_account(url: str, postgresql: PostgreSQL) -> None:
    def come(db: Connection) -> Any:
        return sign_in(db, ADA, open_to_all=True, now_ms=NOW_MS)

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            (user,) = await cross(store, url, postgresql, come, come)
            assert await store.read(all_users) == [user]


async def test_two_addresses_that_are_the_same_have_one_account(url: str, postgresql: PostgreSQL) -> None:
    def add(db: Connection, email: str = "strasse@example.org") -> Any:
        return add_user(db, email=email, name=None, now_ms=NOW_MS)

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            with pytest.raises(ExceptionGroup) as caught:
                await cross(store, url, postgresql, add, add, "straße@example.org")
            users = await store.read(all_users)
    assert caught.group_contains(UserExists)
    assert [user.email for user in users] == ["strasse@example.org"]


async def test_a_device_that_two_register_at_once(url: str, postgresql: PostgreSQL) -> None:
    def add(db: Connection) -> bool:
        try:
            add_devices(db, [new_device(1)], now_ms=NOW_MS)
        except DeviceExists:
            return False
        return True

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            assert await cross(store, url, postgresql, add, add) == [False]


async def test_deadlocked_writers_both_succeed(url: str, postgresql: PostgreSQL) -> None:
    attempts: list[str] = []
    with Database.open(url) as database:
        register(database, [new_device(1, "ada", "bob"), new_device(2, "ada", "bob")])

    async def lock(store: Store, here: trio.Event, there: trio.Event, first: int, second: int) -> None:
        def both(db: Connection) -> None:
            attempts.append(device_id(first))
            lock_device(db, device_id(first))
            trio.from_thread.run_sync(here.set)
            trio.from_thread.run(there.wait)
            leave(db, device_id(second), "bob", now_ms=NOW_MS)

        await store.write(both)

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store, trio.open_nursery() as nursery:
            one, other = trio.Event(), trio.Event()
            nursery.start_soon(lock, store, one, other, 1, 2)
            nursery.start_soon(lock, store, other, one, 2, 1)
    assert len(attempts) == 3


async def test_conflicting_write_is_retried_once(url: str) -> None:
    attempts: list[Connection] = []

    def add(db: Connection) -> None:
        attempts.append(db)
        row = {"id": device_id(1), "key_hash": b"k" * 32, "created_at_ms": 1}
        db.execute(insert(devices), [row, row])

    def break_off(db: Connection) -> None:
        attempts.append(db)
        db.exec_driver_sql("SELECT 1 / 0")

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            for function, times in ((add, 2), (break_off, 1)):
                attempts.clear()
                with pytest.raises(RegistryError) as caught:
                    await store.write(function)
                assert len(attempts) == times
                assert crossed(caught.value) is (times == 2)


def boot(db: Connection, *, at_ms: int = NOW_MS) -> str:
    """Register a machine and its token, which is valid for 1 s."""
    return register_pairing(
        db,
        device_id=device_id(1),
        key_hash=b"k" * 32,
        token_hash=b"t" * 32,
        now_ms=at_ms,
        expires_at_ms=at_ms + 1000,
    )


def test_a_machine_that_registers_twice_at_once(database: Database, postgresql: PostgreSQL) -> None:
    def boot_again() -> str:
        with database.writing() as db:
            return boot(db)

    with ThreadPoolExecutor(1) as pool:
        with database.writing() as db:
            assert boot(db) == "stored"
            second = pool.submit(boot_again)
            postgresql.wait_until_one_waits()
        assert second.result(DEADLINE_S) == "refreshed"


def boot_during_housekeeping(database: Database, postgresql: PostgreSQL, steps: list[Step]) -> None:
    """Register a machine while the steps of housekeeping wait for its rows."""

    def run_steps() -> None:
        with database.writing() as db:
            run_all_steps(db, steps)

    with ThreadPoolExecutor(1) as pool:
        with database.writing() as db:
            boot(db)
            running = pool.submit(run_steps)
            postgresql.wait_until_one_waits()
        running.result(DEADLINE_S)


def test_unused_device_that_registers_meanwhile_is_not_deleted(
    database: Database, postgresql: PostgreSQL
) -> None:
    with database.writing() as db:
        boot(db, at_ms=NOW_MS - UNUSED_DEVICES_KEPT_MS)
        run_all_steps(db, expired(now_ms=NOW_MS))
    with database.reading() as db:
        steps = find_excess(db, now_ms=NOW_MS)
    boot_during_housekeeping(database, postgresql, steps)
    with database.reading() as db:
        assert [device.id for device in all_devices(db)] == [device_id(1)]
        assert len(tokens_of(db, device_id(1), now_ms=NOW_MS)) == 1


def test_expired_token_that_is_prolonged_meanwhile_is_not_deleted(
    database: Database, postgresql: PostgreSQL
) -> None:
    with database.writing() as db:
        boot(db, at_ms=NOW_MS - 1000)
    boot_during_housekeeping(database, postgresql, expired(now_ms=NOW_MS))
    with database.reading() as db:
        assert len(tokens_of(db, device_id(1), now_ms=NOW_MS)) == 1
