import logging
import time
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from sqlalchemy import Connection, delete, insert

from brewos_relay.errors import RegistryError
from brewos_relay.registry.change_feed import (
    APPLIED_AT_ONCE,
    GAP_S,
    GAPS_AT_MOST,
    POLL_S,
    READ_AT_ONCE,
    ChangeReader,
    ChangeWatcher,
)
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.database import Database
from brewos_relay.registry.records import Change
from brewos_relay.registry.schema import changes
from support.change_rows import read_changes
from support.registry import NOW_MS, device_id

DEADLINE_S = 30.0


# Reading changes


def commit(db: Connection, *ids: int) -> None:
    """Make changes with these ids visible, like transactions that commit late."""
    rows = [{"id": id_, "at_ms": NOW_MS, "kind": "access_changed"} for id_ in ids]
    db.execute(insert(changes), rows)


def read_ids(follower: ChangeReader, db: Connection) -> list[int]:
    return [change.id for change in follower.read(db)]


def test_changes_are_read_in_their_order(db: Connection) -> None:
    publish_change(db, "access_changed", device_id=device_id(1), user_id="ada", now_ms=NOW_MS)
    publish_change(db, "session_ended", session_id="s", user_id="ada", now_ms=NOW_MS + 1)
    first, second = read_changes(db, 0)
    assert first == Change(
        id=first.id, at_ms=NOW_MS, kind="access_changed", device_id=device_id(1), user_id="ada"
    )
    assert second == Change(
        id=second.id, at_ms=NOW_MS + 1, kind="session_ended", session_id="s", user_id="ada"
    )
    assert read_changes(db, first.id) == [second]
    assert read_changes(db, second.id) == []


def test_ids_are_not_reused(db: Connection) -> None:
    publish_change(db, "key_changed", now_ms=1)
    (first,) = read_changes(db, 0)
    db.execute(delete(changes))
    publish_change(db, "key_changed", now_ms=1)
    assert read_changes(db, first.id) != []


def test_each_change_since_the_start_is_read_once(database: Database) -> None:
    with database.writing() as db:
        publish_change(db, "key_changed", now_ms=1)
    with database.reading() as db:
        follower = ChangeReader(db)
        assert follower.read(db) == []
    for now_ms in (2, 3):
        with database.writing() as db:
            publish_change(db, "key_changed", now_ms=now_ms)
            publish_change(db, "key_pending", now_ms=now_ms)
        with database.reading() as db:
            found = [(change.kind, change.at_ms) for change in follower.read(db)]
            assert found == [("key_changed", now_ms), ("key_pending", now_ms)]
            assert follower.read(db) == []


def test_change_committed_after_a_later_id_is_read(db: Connection) -> None:
    commit(db, 10)
    follower = ChangeReader(db)
    commit(db, 12, 15)
    assert read_ids(follower, db) == [12, 15]
    commit(db, 11, 13, 16)
    assert read_ids(follower, db) == [11, 13, 16]
    assert read_ids(follower, db) == []
    commit(db, 14)
    assert read_ids(follower, db) == [14]
    assert read_ids(follower, db) == []


def test_change_started_before_the_reader_is_read(db: Connection) -> None:
    commit(db, 8, 10)
    follower = ChangeReader(db)
    assert read_ids(follower, db) == []
    commit(db, 7, 9)
    assert read_ids(follower, db) == [7, 9]
    assert read_ids(follower, db) == []


def gaps(follower: ChangeReader) -> list[tuple[int, int]]:
    return [(gap.first, gap.last) for gap in follower._gaps]


def test_missing_ids_are_abandoned_after_a_while(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = ChangeReader(db)
    commit(db, 2)
    assert read_ids(follower, db) == [2]
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + GAP_S - 1)
    assert read_ids(follower, db) == []
    assert gaps(follower) == [(1, 1)]
    monkeypatch.setattr(time, "monotonic", lambda: now_s + GAP_S + 1)
    assert read_ids(follower, db) == []
    assert gaps(follower) == []


def test_thousand_late_changes_are_read(db: Connection) -> None:
    commit(db, 10)
    follower = ChangeReader(db)
    commit(db, 1500)
    assert read_ids(follower, db) == [1500]
    commit(db, *range(11, 1011))
    assert read_ids(follower, db) == [*range(11, 1011)]
    assert gaps(follower) == [(1, 9), (1011, 1499)]
    commit(db, 1200, 1499)
    assert read_ids(follower, db) == [1200, 1499]
    assert gaps(follower) == [(1, 9), (1011, 1199), (1201, 1498)]


def test_number_of_gaps_is_limited(db: Connection) -> None:
    follower = ChangeReader(db)
    commit(db, *range(2, 2 * GAPS_AT_MOST + 6, 2))
    assert len(read_ids(follower, db)) == GAPS_AT_MOST + 2
    assert len(gaps(follower)) == GAPS_AT_MOST
    commit(db, 3, 5)
    assert read_ids(follower, db) == [5]


def test_reading_gaps_does_not_reread_all_changes(db: Connection) -> None:
    follower = ChangeReader(db)
    commit(db, 1, 2, 3)
    assert read_ids(follower, db) == [1, 2, 3]
    assert gaps(follower) == []


# Watching changes


def change(number: int) -> Change:
    return Change(id=number, at_ms=1, kind="key_changed")


class Committed:
    """Committed changes that are not read yet. Reading takes no time."""

    def __init__(self) -> None:
        self.waiting: list[Change] = []
        self.reads_s: list[float] = []
        self.failing = False

    async def read(self) -> Sequence[Change]:
        self.reads_s.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.failing:
            raise RegistryError("the registry could not be read: the disk is gone")
        found, self.waiting = self.waiting, []
        return found


class Applied:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.at_s: list[float] = []

    async def apply(self, changes: Sequence[Change]) -> None:
        await trio.lowlevel.checkpoint()
        self.ids += [change.id for change in changes]
        self.at_s.append(trio.current_time())


async def test_changes_are_applied_in_time(autojump_clock: trio.testing.MockClock) -> None:
    committed, applied = Committed(), Applied()
    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        watcher.watch(applied.apply)
        for number in range(20):
            committed.waiting.append(change(number))
            committed_s = trio.current_time()
            await trio.sleep(0.51)
            assert applied.ids[-1] == number
            assert applied.at_s[-1] - committed_s <= POLL_S
        nursery.cancel_scope.cancel()
    assert applied.ids == list(range(20))
    assert len(applied.at_s) == 20


async def test_nothing_is_read_before_watching(autojump_clock: trio.testing.MockClock) -> None:
    committed, applied = Committed(), Applied()
    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await trio.sleep(10)
        await watcher.catch_up()
        assert committed.reads_s == []
        committed.waiting.append(change(1))
        watcher.watch(applied.apply)
        await watcher.catch_up()
        assert applied.ids == [1]
        nursery.cancel_scope.cancel()


async def test_catching_up_does_not_wait_for_the_next_poll(autojump_clock: trio.testing.MockClock) -> None:
    committed, applied = Committed(), Applied()
    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        watcher.watch(applied.apply)
        await trio.testing.wait_all_tasks_blocked()
        started_s = trio.current_time()
        for number in range(5):
            committed.waiting.append(change(number))
            await watcher.catch_up()
            assert applied.ids[-1] == number
        assert trio.current_time() == started_s
        nursery.cancel_scope.cancel()


async def test_changes_of_another_process_are_read_on_request(autojump_clock: trio.testing.MockClock) -> None:
    committed, applied = Committed(), Applied()
    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        committed.waiting.append(change(1))
        watcher.read_now()
        await trio.sleep(1)
        assert committed.waiting, "nothing watches, so the change would be lost"
        watcher.watch(applied.apply)
        await trio.testing.wait_all_tasks_blocked()
        started_s = trio.current_time()
        committed.waiting.append(change(2))
        watcher.read_now()
        await trio.testing.wait_all_tasks_blocked()
        assert (applied.ids, applied.at_s[-1]) == ([1, 2], started_s)
        nursery.cancel_scope.cancel()


async def test_catching_up_waits_for_a_round_that_starts_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    committed = Committed()
    seen: list[int] = []
    entered, leave = trio.Event(), trio.Event()

    async def apply(changes: Sequence[Change]) -> None:
        entered.set()
        await leave.wait()
        seen.extend(change.id for change in changes)

    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        committed.waiting.append(change(1))
        watcher.watch(apply)
        await entered.wait()
        committed.waiting.append(change(2))
        async with trio.open_nursery() as waiting:
            for _ in range(3):
                waiting.start_soon(watcher.catch_up)
            await trio.testing.wait_all_tasks_blocked()
            leave.set()
        assert seen == [1, 2]
        assert len(committed.reads_s) == 2
        nursery.cancel_scope.cancel()


async def test_watching_survives_an_unreadable_registry(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    committed, applied = Committed(), Applied()
    committed.failing = True
    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        watcher.watch(applied.apply)
        committed.waiting.append(change(1))
        with caplog.at_level(logging.WARNING):
            with pytest.raises(RegistryError, match="the disk is gone"):
                await watcher.catch_up()
            await trio.sleep(10)
        assert len(caplog.messages) == 1
        committed.failing = False
        await watcher.catch_up()
        assert applied.ids == [1]
        nursery.cancel_scope.cancel()


async def test_failing_change_does_not_stop_watching(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    committed = Committed()
    seen: list[int] = []

    async def apply(changes: Sequence[Change]) -> None:
        await trio.lowlevel.checkpoint()
        if changes[0].id == 1:
            raise ValueError("no such kind of change")
        seen.extend(change.id for change in changes)

    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        watcher.watch(apply)
        committed.waiting.append(change(1))
        # An API answer "ended" must not be sent before the end was applied.
        with pytest.raises(RegistryError, match="no such kind"):
            await watcher.catch_up()
        committed.waiting.append(change(2))
        await watcher.catch_up()
        assert seen == [2]
        nursery.cancel_scope.cancel()
    assert caplog.messages == ["changes could not be applied"]


async def test_catch_up_fails_after_the_watcher_has_ended() -> None:
    committed, applied = Committed(), Applied()
    watcher = ChangeWatcher(committed.read)
    failures: list[RegistryError] = []
    held = trio.Event()

    async def never() -> Sequence[Change]:
        held.set()
        await trio.sleep_forever()

    async def wait() -> None:
        try:
            await watcher.catch_up()
        except RegistryError as failure:
            failures.append(failure)

    watcher._read = never
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            watcher.watch(applied.apply)
            async with trio.open_nursery() as watching:
                watching.start_soon(watcher.run)
                await held.wait()
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                watching.cancel_scope.cancel()
        await wait()
    assert [str(failure) for failure in failures] == ["the registry is closed"] * 2


async def test_the_end_of_a_session_does_not_wait_for_other_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    committed = Committed()
    watcher = ChangeWatcher(committed.read)
    applied: list[int] = []

    async def apply(changes: Sequence[Change]) -> None:
        await trio.sleep(1)
        applied.extend(change.id for change in changes)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        watcher.watch(apply)
        committed.waiting = [change(number) for number in range(5 * APPLIED_AT_ONCE)]
        await trio.sleep(0.5)  # the first batch is under way
        for kind in ("session_ended", "user_removed"):
            committed.waiting.append(Change(id=9000, at_ms=1, kind=kind))
            with trio.fail_after(2.5):
                await watcher.catch_up(ends_only=True)
            assert applied.pop(applied.index(9000)) == 9000
            assert len(applied) < 4 * APPLIED_AT_ONCE
        await watcher.catch_up()
        assert applied == list(range(5 * APPLIED_AT_ONCE)), "the others keep their order"
        nursery.cancel_scope.cancel()


async def test_large_backlog_is_read_first_and_applied_in_batches(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rest = [change(number) for number in range(2 * READ_AT_ONCE + 1)]
    sizes: list[int] = []

    async def read() -> Sequence[Change]:
        await trio.lowlevel.checkpoint()
        found = rest[:READ_AT_ONCE]
        del rest[:READ_AT_ONCE]
        return found

    async def apply(changes: Sequence[Change]) -> None:
        await trio.lowlevel.checkpoint()
        sizes.append(len(changes))

    watcher = ChangeWatcher(read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        watcher.watch(apply)
        await watcher.catch_up()
        assert sizes == [APPLIED_AT_ONCE] * 20 + [1]
        nursery.cancel_scope.cancel()


async def test_waiting_for_session_ends_fails_if_the_registry_is_unreadable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    committed, applied = Committed(), Applied()
    watcher = ChangeWatcher(committed.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        watcher.watch(applied.apply)
        committed.failing = True
        with pytest.raises(RegistryError, match="the disk is gone"):
            await watcher.catch_up(ends_only=True)
        nursery.cancel_scope.cancel()
    with pytest.raises(RegistryError, match="closed"):
        await watcher.catch_up(ends_only=True)
