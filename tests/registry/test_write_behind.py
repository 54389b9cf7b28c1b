import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from sqlalchemy import Connection

from brewos_relay.errors import RegistryError
from brewos_relay.registry import write_behind as notes_module
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import all_devices
from brewos_relay.registry.records import Activity
from brewos_relay.registry.write_behind import ENTRIES_AT_MOST, ENTRIES_AT_ONCE, FLUSH_EVERY_S, WriteBehind
from support.registry import device_id, new_device, register

DEADLINE_S = 30.0


def entry(number: int) -> Activity:
    return Activity(device_id="BRW-00000001", at_ms=number, kind="command")


class Flushes:
    """A fake database that records the time and content of each transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closed = False
        self.limiter = trio.CapacityLimiter(1)
        self.written: list[tuple[float, dict[str, int], list[int]]] = []
        self.failure: Exception | None = None
        self._seen: dict[str, int] = {}
        monkeypatch.setattr(notes_module, "record_seen", self._record_seen)
        monkeypatch.setattr(notes_module, "add_activity_of_known", self._add_activity)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        yield

    def _record_seen(self, _db: Connection, seen: dict[str, int]) -> None:
        self._seen = dict(seen)

    def _add_activity(self, _db: Connection, entries: list[Activity]) -> None:
        try:
            now_s = trio.from_thread.run_sync(trio.current_time)
        except trio.Cancelled:  # left behind
            now_s = math.inf
        self.written.append((now_s, self._seen, [entry.at_ms for entry in entries]))

    def close(self) -> None:
        self.closed = True

    async def wait_for(self, count: int) -> None:
        for _ in range(10_000):
            if len(self.written) >= count:
                return
            await trio.to_thread.run_sync(lambda: None)
        raise AssertionError(f"{len(self.written)} of {count} were written")  # pragma: no cover

    async def settle(self) -> None:
        """Wait until the task that writes waits for its next time; Trio does not count its thread."""
        await trio.testing.wait_all_tasks_blocked()
        while self.limiter.borrowed_tokens:
            await trio.to_thread.run_sync(lambda: None)
            await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> Flushes:
    return Flushes(monkeypatch)


@contextlib.asynccontextmanager
async def open_notes(database: Any) -> Any:
    limiter = database.limiter if isinstance(database, Flushes) else trio.CapacityLimiter(1)
    notes = WriteBehind(database, limiter=limiter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.run)
        yield notes
        nursery.cancel_scope.cancel()


async def test_facts_are_written_together_every_few_seconds(
    mock_clock: trio.testing.MockClock, flushes: Flushes
) -> None:
    async with open_notes(flushes) as notes:
        notes.record_seen("a", 1)
        await flushes.wait_for(1)
        started_s = trio.current_time()
        for at_ms in range(2, 10):
            notes.record_seen("a", at_ms)
            notes.record_seen("b", 10 - at_ms)
            notes.record_activity(entry(at_ms))
            await flushes.settle()
        mock_clock.jump(FLUSH_EVERY_S - 0.1)
        await flushes.settle()
        assert flushes.written == [(started_s, {"a": 1}, [])]
        mock_clock.jump(0.1)
        await flushes.wait_for(2)
        assert flushes.written[1] == (started_s + FLUSH_EVERY_S, {"a": 9, "b": 8}, list(range(2, 10)))
        # With nothing recorded, nothing is written.
        mock_clock.jump(10 * FLUSH_EVERY_S)
        await flushes.settle()
        assert len(flushes.written) == 2
    assert len(flushes.written) == 2


async def test_activity_alone_is_written_too(flushes: Flushes) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_notes(flushes) as notes:
            notes.record_activity(entry(1))
            await flushes.wait_for(1)
    assert [written[1:] for written in flushes.written] == [({}, [1])]


async def test_remaining_facts_are_written_on_close(flushes: Flushes) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_notes(flushes) as notes:
            notes.record_seen("a", 1)
            await flushes.wait_for(1)
            notes.record_seen("b", 2)
            notes.record_activity(entry(3))
    assert [written[1:] for written in flushes.written] == [({"a": 1}, []), ({"b": 2}, [3])]


async def test_write_under_way_on_close_happens_once(
    flushes: Flushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    add = flushes._add_activity

    def slow(db: Connection, entries: list[Activity]) -> None:
        entered.set()
        leave.wait(DEADLINE_S)
        add(db, entries)

    monkeypatch.setattr(notes_module, "add_activity_of_known", slow)
    with trio.fail_after(DEADLINE_S):
        async with open_notes(flushes) as notes:
            notes.record_activity(entry(1))
            await trio.to_thread.run_sync(entered.wait, DEADLINE_S)
            notes.record_activity(entry(2))
            trio.lowlevel.spawn_system_task(release, leave)
    assert [written[2] for written in flushes.written] == [[1], [2]]


async def test_write_that_waits_for_a_thread_on_close_happens_once(flushes: Flushes) -> None:
    flushes.limiter.acquire_on_behalf_of_nowait("another")
    with trio.fail_after(DEADLINE_S):
        async with open_notes(flushes) as notes:
            notes.record_seen("a", 1)
            notes.record_activity(entry(1))
            await trio.testing.wait_all_tasks_blocked()
            notes.record_activity(entry(2))
            trio.lowlevel.spawn_system_task(free, flushes.limiter)
    assert [written[1:] for written in flushes.written] == [({"a": 1}, [1, 2])]


async def free(limiter: trio.CapacityLimiter) -> None:
    await trio.testing.wait_all_tasks_blocked()
    limiter.release_on_behalf_of("another")


async def release(leave: threading.Event) -> None:
    await trio.testing.wait_all_tasks_blocked()
    leave.set()


async def test_failed_write_of_facts_is_retried(
    mock_clock: trio.testing.MockClock, flushes: Flushes, caplog: pytest.LogCaptureFixture
) -> None:
    flushes.failure = RegistryError("the registry could not be changed: database is locked")
    async with open_notes(flushes) as notes:
        with caplog.at_level(logging.WARNING):
            notes.record_seen("a", 1)
            notes.record_seen("b", 5)
            notes.record_activity(entry(1))
            while not caplog.messages:
                await trio.to_thread.run_sync(lambda: None)
        notes.record_seen("a", 2)
        notes.record_activity(entry(2))
        await flushes.settle()
        mock_clock.jump(FLUSH_EVERY_S)
        await flushes.wait_for(1)
    assert flushes.written[0][1:] == ({"a": 2, "b": 5}, [1, 2])
    assert "database is locked" in caplog.text


async def test_facts_wait_while_no_thread_can_be_started(
    mock_clock: trio.testing.MockClock,
    flushes: Flushes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    async with open_notes(flushes) as notes:
        with caplog.at_level(logging.WARNING), monkeypatch.context() as patched:
            patched.setattr(trio._threads, "start_thread_soon", refuse)
            notes.record_seen("a", 1)
            notes.record_activity(entry(1))
            while not caplog.messages:
                await trio.lowlevel.checkpoint()
        await flushes.settle()
        mock_clock.jump(FLUSH_EVERY_S)
        await flushes.wait_for(1)
    assert flushes.written[0][1:] == ({"a": 1}, [1])
    assert "can't start new thread; trying again" in caplog.text


async def test_burst_triggers_one_early_write(
    mock_clock: trio.testing.MockClock, flushes: Flushes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_notes(flushes) as notes:
        notes.record_activity(entry(0))
        await flushes.wait_for(1)
        for at_ms in range(1, ENTRIES_AT_ONCE + 1):
            notes.record_activity(entry(at_ms))
        await flushes.wait_for(2)  # no time has passed
        assert flushes.written[1][2] == list(range(1, ENTRIES_AT_ONCE + 1))
        flushes.failure = RegistryError("the registry could not be changed: database is locked")
        for at_ms in range(ENTRIES_AT_ONCE):
            notes.record_activity(entry(at_ms))
        while not caplog.messages:
            await trio.to_thread.run_sync(lambda: None)
        notes.record_activity(entry(ENTRIES_AT_ONCE))
        await flushes.settle()
        assert len(flushes.written) == 2
        mock_clock.jump(FLUSH_EVERY_S)
        await flushes.wait_for(3)
        assert flushes.written[2][2] == list(range(ENTRIES_AT_ONCE + 1))


async def test_unwritable_facts_do_not_block_later_ones(
    mock_clock: trio.testing.MockClock, flushes: Flushes, caplog: pytest.LogCaptureFixture
) -> None:
    flushes.failure = UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
    async with open_notes(flushes) as notes:
        notes.record_activity(entry(1))
        while not caplog.messages:
            await trio.to_thread.run_sync(lambda: None)
        notes.record_activity(entry(2))
        await flushes.settle()
        mock_clock.jump(FLUSH_EVERY_S)
        await flushes.wait_for(1)
    assert [written[1:] for written in flushes.written] == [({}, [2])]
    assert caplog.messages == ["records of devices cannot be written and are lost"]


async def test_too_much_activity_is_dropped_and_counted(
    mock_clock: trio.testing.MockClock, flushes: Flushes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_notes(flushes) as notes:
        for number in range(ENTRIES_AT_MOST + 7):
            notes.record_activity(entry(number))
        await flushes.wait_for(1)
        for number in range(3):
            notes.record_activity(entry(number))
        await flushes.settle()
        mock_clock.jump(FLUSH_EVERY_S)
        await flushes.wait_for(2)
    assert flushes.written[0][2] == list(range(ENTRIES_AT_MOST))
    assert flushes.written[1][2] == [0, 1, 2]
    assert caplog.messages == ["7 entries of activity were dropped: too many at once"]


async def test_the_oldest_activity_stays_when_it_cannot_be_written(
    mock_clock: trio.testing.MockClock, flushes: Flushes, caplog: pytest.LogCaptureFixture
) -> None:
    flushes.failure = RegistryError("no")
    async with open_notes(flushes) as notes:
        for number in range(ENTRIES_AT_MOST):
            notes.record_activity(entry(number))
        while not caplog.messages:
            await trio.to_thread.run_sync(lambda: None)
        notes.record_activity(entry(-1))
        await flushes.settle()
        mock_clock.jump(FLUSH_EVERY_S)
        await flushes.wait_for(1)
    assert flushes.written[0][2] == list(range(ENTRIES_AT_MOST))
    assert "1 entries of activity were dropped: too many at once" in caplog.messages


async def test_reported_device_info_is_written(
    mock_clock: trio.testing.MockClock, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    register(database, [new_device(1), new_device(2)])
    with database.writing() as db:
        db.exec_driver_sql("ALTER TABLE activity RENAME TO gone")
    async with open_notes(database) as notes:
        notes.record_activity(entry(1))  # which cannot be written yet
        notes.record_info(device_id(1), firmware_version="1.0", machine_type="dual")
        notes.record_info(device_id(2), firmware_version=None, machine_type=None)
        while not caplog.messages:
            await trio.to_thread.run_sync(lambda: None)
        notes.record_info(device_id(1), firmware_version="1.1", machine_type="dual")
        with database.writing() as db:
            db.exec_driver_sql("ALTER TABLE gone RENAME TO activity")
    with database.reading() as db:
        found = [(device.firmware_version, device.machine_type) for device in all_devices(db)]
    assert found == [("1.1", "dual"), (None, None)]


async def test_recorded_facts_are_in_the_database(database: Database, url: str) -> None:
    register(database, [new_device(1)])
    with trio.fail_after(DEADLINE_S):
        async with open_notes(database) as notes:
            notes.record_seen("BRW-00000001", 1)
            notes.record_activity(Activity(device_id="BRW-00000001", at_ms=1, kind="online"))
    with Database.open(url) as other, other.reading() as db:
        assert db.exec_driver_sql("SELECT kind FROM activity").scalars().all() == ["online"]
