import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from brewos_relay.errors import RegistryError
from brewos_relay.registry import store as store_module
from brewos_relay.registry.database import Database, NewDevice
from brewos_relay.registry.store import FLUSH_EVERY_S, Store, open_store

DEADLINE_S = 30.0
IDS = [f"BRW-{number:08X}" for number in range(200)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/registry.db"
    with Database.open(url) as database:
        database.add_devices([NewDevice(id=id_, key_hash=b"k" * 32, user_id="ada") for id_ in IDS])
    return url


def read_last_seen(url: str) -> dict[str, int]:
    with Database.open(url) as database:
        return {
            device.id: device.last_seen_ms for device in database.devices() if device.last_seen_ms is not None
        }


async def test_devices_are_found(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            device = await store.find_device(IDS[3])
            assert device is not None
            assert (device.id, device.key_hash) == (IDS[3], b"k" * 32)
            assert await store.find_device("BRW-FFFFFFFF") is None
            assert [each.id for each in await store.all_devices()] == IDS
            assert [each.id for each in await store.devices_of("ada")] == IDS
            assert await store.devices_of("eve") == []
            assert {each.id for each in await store.find_devices([IDS[0], IDS[1], "BRW-FFFFFFFF"])} == set(
                IDS[:2]
            )


async def test_who_has_which_device(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            assert await store.user_has_device("ada", IDS[0])
            assert not await store.user_has_device("eve", IDS[0])
            assert not await store.user_has_device("ada", "BRW-FFFFFFFF")


async def test_what_another_process_adds_is_found_at_once(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            assert await store.find_device("BRW-FFFFFFFF") is None
            with Database.open(url) as other:
                other.add_devices([NewDevice(id="BRW-FFFFFFFF", key_hash=bytes(32), user_id="eve")])
            assert await store.find_device("BRW-FFFFFFFF") is not None
            assert await store.user_has_device("eve", "BRW-FFFFFFFF")


@pytest.mark.parametrize("method", ["devices", "ownerships"])
async def test_lookups_that_arrive_together_share_queries(
    url: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    query = getattr(Database, method)

    def counting_query(database: Database, keys: list[Any]) -> Any:
        sizes.append(len(keys))
        return query(database, keys)

    monkeypatch.setattr(Database, method, counting_query)
    found: list[object] = []

    async def look_up(store: Store, device_id: str) -> None:
        if method == "devices":
            found.append(await store.find_device(device_id))
        else:
            found.append(await store.user_has_device("ada", device_id))

    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store, trio.open_nursery() as nursery:
            for device_id in IDS:
                nursery.start_soon(look_up, store, device_id)
    assert len(found) == len(IDS)
    assert all(found)
    assert sum(sizes) == len(IDS)
    assert len(sizes) <= 3


async def test_a_broken_database_fails_the_lookup_and_not_the_store(url: str, tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            rename_table(tmp_path, "devices", "gone")
            for _ in range(2):
                with pytest.raises(RegistryError, match="could not read devices: no such table"):
                    await store.find_device(IDS[0])
            rename_table(tmp_path, "gone", "devices")
            assert await store.find_device(IDS[0]) is not None


async def test_a_registry_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot open the database"):
        async with open_store(f"sqlite:///{tmp_path}"):
            pass  # pragma: no cover


async def test_a_closed_store_refuses_lookups(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            pass
        with pytest.raises(RegistryError, match="the registry is closed"):
            await store.find_device(IDS[0])


async def test_what_was_noted_is_written_when_the_store_closes(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url) as store:
            store.note_seen(IDS[0], 1000)
            store.note_seen(IDS[1], 3000)
            store.note_seen(IDS[1], 2000)
            store.note_seen("BRW-FFFFFFFF", 1)
    assert read_last_seen(url) == {IDS[0]: 1000, IDS[1]: 3000}


async def test_what_was_noted_is_written_though_the_body_is_cancelled(url: str) -> None:
    with trio.move_on_after(DEADLINE_S) as scope:
        async with open_store(url) as store:
            store.note_seen(IDS[0], 1000)
            scope.cancel()
            await trio.sleep_forever()
    assert read_last_seen(url) == {IDS[0]: 1000}


class Flushes:
    """Stands for a database, and tells at what time each transaction was asked for."""

    def __init__(self, failures: int = 0) -> None:
        self.closed = False
        self.written: list[tuple[float, dict[str, int]]] = []
        self.failures = failures

    def note_seen(self, seen: dict[str, int]) -> None:
        if self.failures:
            self.failures -= 1
            raise RegistryError("the registry could not note when devices were seen: database is locked")
        assert not self.closed
        self.written.append((trio.from_thread.run_sync(trio.current_time), dict(seen)))

    def close(self) -> None:
        self.closed = True


async def wait_until_written(flushes: Flushes, count: int) -> None:
    for _ in range(10_000):
        if len(flushes.written) >= count:
            return
        await trio.to_thread.run_sync(lambda: None)
    raise AssertionError(f"{len(flushes.written)} of {count} were written")  # pragma: no cover


async def test_notes_are_written_together_every_few_seconds(mock_clock: trio.testing.MockClock) -> None:
    flushes = Flushes()
    store = Store(flushes)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        store.note_seen("a", 1)
        await wait_until_written(flushes, 1)
        started_s = trio.current_time()
        for at_ms in range(2, 10):
            store.note_seen("a", at_ms)
            store.note_seen("b", at_ms)
            await trio.testing.wait_all_tasks_blocked(0.001)
        mock_clock.jump(FLUSH_EVERY_S - 0.1)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert flushes.written == [(started_s, {"a": 1})]
        mock_clock.jump(0.1)
        await wait_until_written(flushes, 2)
        assert flushes.written[1] == (started_s + FLUSH_EVERY_S, {"a": 9, "b": 9})
        # With nothing noted, nothing is written.
        mock_clock.jump(10 * FLUSH_EVERY_S)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert len(flushes.written) == 2
        nursery.cancel_scope.cancel()
    assert len(flushes.written) == 2


async def test_notes_that_could_not_be_written_are_tried_again(
    mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    flushes = Flushes(failures=1)
    store = Store(flushes)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        with caplog.at_level(logging.WARNING):
            store.note_seen("a", 1)
            store.note_seen("b", 5)
            while not caplog.messages:
                await trio.to_thread.run_sync(lambda: None)
        store.note_seen("a", 2)
        await trio.testing.wait_all_tasks_blocked(0.001)
        mock_clock.jump(FLUSH_EVERY_S)
        await wait_until_written(flushes, 1)
        nursery.cancel_scope.cancel()
    assert flushes.written[0][1] == {"a": 2, "b": 5}
    assert "database is locked" in caplog.text


async def test_closing_does_not_wait_for_ever(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CLOSE_S", 0.05)
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as other:
        with trio.fail_after(DEADLINE_S):
            async with open_store(url) as store:
                other.execute("BEGIN IMMEDIATE")
                store.note_seen(IDS[0], 1000)
                store.note_seen(IDS[0], 2000)
        assert read_last_seen(url) == {}
        other.rollback()
    # The thread that was left behind comes to its end none the less.
    with trio.fail_after(DEADLINE_S):
        while read_last_seen(url) != {IDS[0]: 2000}:  # noqa: ASYNC110  it ends in a thread of its own
            await trio.sleep(0.01)


def rename_table(folder: Path, old: str, new: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "registry.db")) as connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
