import contextlib
import functools
import gc
import sqlite3
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from sqlalchemy import Connection, func, select

from brewos_relay.errors import RegistryError
from brewos_relay.registry import store as store_module
from brewos_relay.registry import write_behind as notes_module
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.bulk import PAUSE_S
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import all_devices, find_devices, lock_device, remove_device, set_name
from brewos_relay.registry.housekeeping import PRUNE_EVERY_S, prune
from brewos_relay.registry.login_sessions import end_session, open_session
from brewos_relay.registry.records import Access, Activity, Change
from brewos_relay.registry.schema import device_users
from brewos_relay.registry.store import Store, open_store
from brewos_relay.vocabulary import now_ms
from support.kinds import ON_SQLITE
from support.registry import device_id, new_device, register

DEADLINE_S = 30.0
IDS = [device_id(number) for number in range(200)]


@pytest.fixture
def url(url: str) -> str:
    with Database.open(url) as database:
        register(database, [new_device(number, "ada") for number in range(len(IDS))])
    return url


def read_last_seen(url: str) -> dict[str, int]:
    with Database.open(url) as database, database.reading() as db:
        devices = all_devices(db)
    return {device.id: device.last_seen_ms for device in devices if device.last_seen_ms is not None}


async def test_devices_and_access_are_found(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            device = await store.find_device(IDS[3])
            assert device is not None
            assert (device.id, device.key_hash) == (IDS[3], b"\x03" * 32)
            assert await store.find_device("BRW-FFFFFFFF") is None
            access = await store.access_of("ada", IDS[0])
            assert access is not None
            assert (access.user_id, access.device_id, access.role) == ("ada", IDS[0], "owner")
            assert await store.access_of("eve", IDS[0]) is None
            assert await store.access_of("ada", "BRW-FFFFFFFF") is None


async def test_a_registry_that_lost_its_tables_does_not_answer(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            await store.check()
            with Database.open(url) as other:
                with other.writing() as db:
                    db.exec_driver_sql("ALTER TABLE devices RENAME TO gone")
                with pytest.raises(RegistryError):
                    await store.check()
                with other.writing() as db:
                    db.exec_driver_sql("ALTER TABLE gone RENAME TO devices")
            await store.check()


async def test_access_ends_with_its_time(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            for user, until_ms in (("now", now_ms() - 1), ("later", now_ms() + 60_000)):
                await store.write(give, IDS[0], user, role="viewer", until_ms=until_ms, now_ms=1)
            assert await store.access_of("now", IDS[0]) is None
            assert await store.access_of("later", IDS[0]) is not None


async def test_sessions_are_found_until_they_end(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            user = await store.write(add_user, email="ada@example.org", name=None, now_ms=now_ms())
            for session_id, expires_at_ms in (("a", now_ms() + 60_000), ("b", now_ms() + 60_000), ("c", 2)):
                await store.write(
                    open_session,
                    session_id=session_id,
                    user_id=user.id,
                    refresh_hash=session_id.encode() * 32,
                    user_agent=None,
                    address=None,
                    now_ms=1,
                    expires_at_ms=expires_at_ms,
                )
            found = await store.find_session("a")
            assert found is not None
            assert (found.id, found.user_id, found.email) == ("a", user.id, "ada@example.org")
            await store.write(end_session, "b", now_ms=now_ms())
            for session_id in ("b", "c", "x"):
                assert await store.find_session(session_id) is None


async def test_lookups_of_an_admission_share_a_visit_to_the_registry(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[int] = []
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            await store.write(give, IDS[0], "ada", role="member", now_ms=1)
            query = store._lookups._query

            def count(keys: list[Any]) -> Any:
                queries.append(len(keys))
                return query(keys)

            monkeypatch.setattr(store._lookups, "_query", count)
            session, revoked = store.ask_session("none"), store.ask_revoked("none")
            access, device = store.ask_access("ada", IDS[0]), store.ask_device(IDS[0])
            assert (await session.wait(), await revoked.wait()) == (None, None)
            found = await access.wait(), await device.wait()
            assert queries == [4]
    assert [each.device_id if isinstance(each, Access) else each and each.id for each in found] == [
        IDS[0]
    ] * 2
    assert sum(store.timings["lookup"].counts) == 4


async def test_reading_and_writing(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            assert [each.id for each in await store.read(all_devices)] == IDS
            assert {each.id for each in await store.read(find_devices, IDS[:2])} == set(IDS[:2])
            assert await store.write(set_name, IDS[0], "Kitchen", now_ms=1) is True
            device = await store.find_device(IDS[0])
            assert device is not None
            assert device.name == "Kitchen"


async def test_a_write_that_fails_leaves_nothing(url: str) -> None:
    def fail(db: Connection) -> None:
        set_name(db, IDS[0], "Kitchen", now_ms=1)
        raise ValueError("no")

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            with pytest.raises(ValueError, match="no"):
                await store.write(fail)
            device = await store.find_device(IDS[0])
            assert device is not None
            assert device.name is None


async def test_writers_wait_without_a_thread_each(url: str) -> None:
    at_once = 0
    most = 0

    def write(db: Connection) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        set_name(db, IDS[0], "Kitchen", now_ms=1)
        at_once -= 1

    with trio.fail_after(DEADLINE_S):
        async with open_store(url, connections=2) as store, trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(store.write, write)
            # Reading goes on meanwhile.
            assert await store.find_device(IDS[0]) is not None
    assert most == 1


async def test_rows_of_another_process_are_found_at_once(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            assert await store.find_device("BRW-FFFFFFFF") is None
            with Database.open(url) as other:
                register(other, [new_device(0xFFFFFFFF, "eve")])
            assert await store.find_device("BRW-FFFFFFFF") is not None
            assert await store.access_of("eve", "BRW-FFFFFFFF") is not None


@pytest.mark.parametrize("function", ["find_devices", "access_of"])
async def test_lookups_that_arrive_together_share_queries(
    url: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    query = getattr(store_module, function)

    def counting_query(db: Connection, keys: list[Any], **rest: Any) -> Any:
        sizes.append(len(keys))
        return query(db, keys, **rest)

    monkeypatch.setattr(store_module, function, counting_query)
    found: list[object] = []

    async def look_up(store: Store, device_id: str) -> None:
        if function == "find_devices":
            found.append(await store.find_device(device_id))
        else:
            found.append(await store.access_of("ada", device_id))

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store, trio.open_nursery() as nursery:
            for device_id in IDS:
                nursery.start_soon(look_up, store, device_id)
    assert len(found) == len(IDS)
    assert all(found)
    assert sum(sizes) == len(IDS)
    assert len(sizes) <= 3


@ON_SQLITE
async def test_lookups_keep_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connects: list[object] = []
    connect = sqlite3.dbapi2.connect

    def counting_connect(*args: Any, **kwargs: Any) -> Any:
        connects.append(args)
        return connect(*args, **kwargs)

    monkeypatch.setattr(sqlite3.dbapi2, "connect", counting_connect)

    async def look_up(store: Store, times: int) -> None:
        for number in range(times):
            assert await store.find_device(IDS[number % len(IDS)]) is not None
            assert await store.access_of("ada", IDS[number % len(IDS)]) is not None

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            await look_up(store, 300)  # caches fill
            connected = len(connects)
            gc.collect()
            gc.disable()  # freed objects are freed without it
            try:
                before = count_objects()
                await look_up(store, 300)
                kept = count_objects() - before
            finally:
                gc.enable()
    assert len(connects) == connected
    assert kept < 50


def count_objects() -> int:
    # A connection keeps weak references to about its last 200 cursors, and then drops them all at once.
    return sum(type(each) is not weakref.ref for each in gc.get_objects())


async def test_a_broken_database_fails_the_lookup_and_not_the_store(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            rename_table(url, "devices", "gone")
            for _ in range(2):
                with pytest.raises(RegistryError, match=r"could not be read: (no such table|relation)"):
                    await store.find_device(IDS[0])
            rename_table(url, "gone", "devices")
            assert await store.find_device(IDS[0]) is not None


async def test_unusable_registry_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot open the database"):
        async with open_store(f"sqlite:///{tmp_path}"):
            pass  # pragma: no cover


async def test_a_registry_whose_changes_cannot_be_read(url: str) -> None:
    rename_table(url, "changes", "gone")
    with pytest.raises(RegistryError, match=r"could not be read: (no such table|relation)"):
        async with open_store(url):
            pass  # pragma: no cover


async def test_a_closed_store_refuses_lookups(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            pass
        with pytest.raises(RegistryError, match="the registry is closed"):
            await store.find_device(IDS[0])


# Changes


async def test_changes_of_this_process_and_of_others_are_applied(url: str) -> None:
    seen: list[tuple[str | None, int]] = []
    at_ms = now_ms()  # old rows are deleted when a store is opened

    async def apply(changes: Sequence[Change]) -> None:
        await trio.lowlevel.checkpoint()
        seen.extend((change.device_id, change.at_ms - at_ms) for change in changes)

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            await store.write(remove_device, IDS[0], now_ms=at_ms + 1)
            await store.catch_up()  # nothing watches yet
            store.watch_changes(apply)
            await store.write(remove_device, IDS[1], now_ms=at_ms + 2)
            await store.catch_up()
            assert seen == [(IDS[0], 1), (IDS[1], 2)]
            with Database.open(url) as other, other.writing() as db:
                remove_device(db, IDS[2], now_ms=at_ms + 3)
            await store.catch_up()
            assert seen[2:] == [(IDS[2], 3)]
            with Database.open(url) as other, other.writing() as db:
                remove_device(db, IDS[3], now_ms=at_ms + 4)
            committed_s = trio.current_time()
            while len(seen) < 4:  # noqa: ASYNC110  it comes by itself
                await trio.sleep(0.01)
            assert trio.current_time() - committed_s < 2  # 0.25 s, but for a busy computer
    # Earlier changes are not applied again.
    seen.clear()
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            store.watch_changes(apply)
            await store.catch_up()
    assert seen == []


# Housekeeping


async def test_expired_rows_are_deleted_on_start(url: str) -> None:
    with Database.open(url) as database, database.writing() as db:
        give(db, IDS[0], "guest", role="viewer", until_ms=2, now_ms=1)
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            while await store.read(count_guests):  # noqa: ASYNC110  another task deletes them
                await trio.sleep(0.01)


async def read_nothing(_store: Store, _function: object, **_arguments: object) -> list[str]:
    """Find nothing, without a thread: the virtual clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return []


async def test_expired_rows_are_deleted_every_hour(
    url: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned_s: list[float] = []

    async def write(_store: Store, step: functools.partial[bool]) -> bool:
        assert step.func is prune
        await trio.lowlevel.checkpoint()
        if pruned_s[-1:] != [trio.current_time()]:  # there are two kinds of steps
            pruned_s.append(trio.current_time())
        if len(pruned_s) == 1:
            raise RegistryError("locked")
        return False

    monkeypatch.setattr(Store, "write", write)
    monkeypatch.setattr(Store, "read", read_nothing)
    async with open_store(url):
        started_s = trio.current_time()
        await trio.sleep(2.5 * PRUNE_EVERY_S)
    assert pruned_s == [started_s + hours * PRUNE_EVERY_S for hours in range(3)]


async def test_many_expired_rows_are_deleted_in_steps(
    url: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned_s: list[float] = []

    async def write(_store: Store, _step: object) -> bool:
        await trio.lowlevel.checkpoint()
        pruned_s.append(trio.current_time())
        return len(pruned_s) < 3

    monkeypatch.setattr(Store, "write", write)
    monkeypatch.setattr(Store, "read", read_nothing)
    async with open_store(url):
        started_s = trio.current_time()
        await trio.sleep(PRUNE_EVERY_S)
    assert pruned_s[:3] == [started_s + steps * PAUSE_S for steps in range(3)]


# Recorded facts


async def test_recorded_facts_are_written_when_the_store_closes(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            store.write_behind.record_seen(IDS[0], 1000)
            store.write_behind.record_seen(IDS[1], 3000)
            store.write_behind.record_seen(IDS[1], 2000)
            store.write_behind.record_seen("BRW-FFFFFFFF", 1)
            store.write_behind.record_activity(Activity(device_id=IDS[0], at_ms=now_ms(), kind="online"))
    assert read_last_seen(url) == {IDS[0]: 1000, IDS[1]: 3000}
    with Database.open(url) as database, database.reading() as db:
        assert [entry.kind for entry in activity_of(db, IDS[0])] == ["online"]


async def test_recorded_facts_are_written_although_the_body_is_cancelled(url: str) -> None:
    with trio.move_on_after(DEADLINE_S) as scope:
        async with open_store(url) as store:
            store.write_behind.record_seen(IDS[0], 1000)
            scope.cancel()
            await trio.sleep_forever()
    assert read_last_seen(url) == {IDS[0]: 1000}


async def test_closing_has_a_deadline(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes_module, "CLOSE_S", 0.05)
    with Database.open(url) as other, contextlib.ExitStack() as held:
        with trio.fail_after(DEADLINE_S):
            async with open_store(url) as store:
                lock_device(held.enter_context(other.writing()), IDS[0])
                store.write_behind.record_seen(IDS[0], 1000)
                store.write_behind.record_seen(IDS[0], 2000)
        assert read_last_seen(url) == {}
    # The abandoned thread still ends.
    with trio.fail_after(DEADLINE_S):
        while read_last_seen(url) != {IDS[0]: 2000}:  # noqa: ASYNC110  it ends in a thread of its own
            await trio.sleep(0.01)


def count_guests(db: Connection) -> int:
    return db.execute(select(func.count()).where(device_users.c.user_id == "guest")).scalar_one()


def rename_table(url: str, old: str, new: str) -> None:
    with Database.open(url) as other, other.writing() as db:
        db.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
