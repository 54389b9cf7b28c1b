import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine
from trio.testing import MockClock

from brewos_relay.errors import RegistryBusy
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import find_devices, lock_device, set_name
from brewos_relay.registry.engine import BUSY_TIMEOUT_S
from brewos_relay.registry.housekeeping import Housekeeper
from brewos_relay.registry.store import Store, open_store
from brewos_relay.registry.write_attempt import WriteAttempt
from support.kinds import ON_SQLITE
from support.registry import device_id, new_device, register
from support.waiting import until

DEADLINE_S = 30.0
ONE_WRITER = 2  # connections: one for reads, one for writes
WRITE_S = 0.3
MACHINE = device_id(1)


@pytest.fixture
def url(url: str) -> str:
    with Database.open(url) as database:
        register(database, [new_device(1)])
    return url


def name_in(url: str) -> str | None:
    with Database.open(url) as database, database.reading() as db:
        (device,) = find_devices(db, [MACHINE])
    return device.name


class Slow:
    """A write that continues only when told."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let = threading.Event()
        self.ended = threading.Event()

    def __call__(self, db: Connection) -> bool:
        self.begun.set()
        try:
            assert self.let.wait(DEADLINE_S)
            return set_name(db, MACHINE, "late", now_ms=1)
        finally:
            self.ended.set()


@contextmanager
def expect_busy() -> Iterator[None]:
    began_s = time.monotonic()
    with pytest.raises(RegistryBusy) as found:
        yield
    assert found.value.undone
    assert time.monotonic() - began_s < WRITE_S + 2  # not the 10 s of a write without a deadline


async def give_up(store: Store, slow: Slow) -> None:
    """Write until the time for it is over after it has begun: on a busy computer, that may be before."""
    while not slow.begun.is_set():
        with expect_busy():
            await store.write(slow)


async def rename(store: Store, name: str) -> bool:
    return await store.write(set_name, MACHINE, name, now_ms=1)


async def test_write_behind_a_lock_of_another_process_is_busy_in_time(url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_store(url, write_s=WRITE_S) as store:
            with ExitStack() as held:
                other = held.enter_context(Database.open(url))
                lock_device(held.enter_context(other.writing()), MACHINE)
                with expect_busy():
                    await rename(store, "late")
            assert await rename(store, "after")
        assert name_in(url) == "after"


async def test_write_behind_another_writer_of_this_process_is_busy_in_time(url: str) -> None:
    slow = Slow()
    with trio.fail_after(DEADLINE_S):
        async with open_store(url, connections=ONE_WRITER, write_s=WRITE_S) as store:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_up, store, slow)
                await until(slow.begun.is_set)
                for _ in range(5):
                    nursery.start_soon(refused, store)
            slow.let.set()
            await until(slow.ended.is_set)
            assert await rename(store, "after")
        assert name_in(url) == "after"


async def refused(store: Store) -> None:
    with expect_busy():
        await rename(store, "queued")


async def test_abandoned_write_is_not_committed_later(url: str) -> None:
    slow = Slow()
    with trio.fail_after(DEADLINE_S):
        async with open_store(url, write_s=WRITE_S) as store:
            await give_up(store, slow)
            slow.let.set()
            await until(slow.ended.is_set)
            await until(lambda: store._writers.borrowed_tokens == 0)
        assert name_in(url) is None


async def test_abandoned_write_may_end_after_its_store(url: str) -> None:
    slow = Slow()
    with trio.fail_after(DEADLINE_S):
        async with open_store(url, write_s=WRITE_S) as store:
            await give_up(store, slow)
        slow.let.set()
        await until(slow.ended.is_set)
    assert name_in(url) is None


async def test_write_whose_commit_is_under_way_says_that_it_may_be_done(url: str) -> None:
    let, ended = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        assert let.wait(DEADLINE_S)
        if connection.dialect.name == "postgresql":  # which may cancel a slow COMMIT as well
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        ended.set()

    with trio.fail_after(DEADLINE_S):
        async with open_store(url, write_s=WRITE_S) as store:
            event.listen(Engine, "commit", hold)
            try:
                undone = True
                while undone:  # on a busy computer, the time may be over before the commit
                    with pytest.raises(RegistryBusy) as found:
                        await rename(store, "late")
                    undone = found.value.undone
                let.set()
                await until(ended.is_set)
                await until(lambda: store._writers.borrowed_tokens == 0)
            finally:
                event.remove(Engine, "commit", hold)  # not while the thread still calls the listeners
        assert name_in(url) == "late"


async def test_deadline_of_the_caller_counts_if_it_is_earlier(url: str) -> None:
    slow = Slow()
    with trio.fail_after(DEADLINE_S):
        async with open_store(url, write_s=DEADLINE_S) as store:
            while not slow.begun.is_set():
                with expect_busy(), trio.move_on_after(WRITE_S):
                    await store.write(slow)
            slow.let.set()


async def test_cancellation_waits_for_a_write_under_way(url: str) -> None:
    slow = Slow()
    with trio.fail_after(DEADLINE_S):
        async with open_store(url, write_s=DEADLINE_S) as store, trio.open_nursery() as nursery:
            nursery.start_soon(store.write, slow)
            await until(slow.begun.is_set)
            nursery.cancel_scope.cancel()
            slow.let.set()
        assert name_in(url) == "late"


async def test_cancellation_ends_the_queue_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def do_nothing(_store: Store) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Housekeeper, "run", do_nothing)  # it would queue as well
    slow = Slow()
    with trio.fail_after(DEADLINE_S):
        async with (
            open_store(url, connections=ONE_WRITER, write_s=DEADLINE_S) as store,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(store.write, slow)
            await until(slow.begun.is_set)
            async with trio.open_nursery() as queue:
                queue.start_soon(rename, store, "queued")
                await until(lambda: store._writers.statistics().tasks_waiting == 1)
                queue.cancel_scope.cancel()
            slow.let.set()
        assert name_in(url) == "late"


async def test_result_that_comes_with_the_deadline_counts(mock_clock: MockClock) -> None:
    class Late(WriteAttempt):
        """Its thread has the result in time, but notifies the event loop too late."""

        def _call(self, write: Callable[[], str]) -> str:  # type: ignore[override]
            result = super()._call(write)
            trio.from_thread.run_sync(mock_clock.jump, 10)
            return result

    assert await Late(trio.CapacityLimiter(1), within_s=5).run(lambda: "done") == "done"


async def test_no_place_is_lost_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    limiter = trio.CapacityLimiter(1)
    monkeypatch.setattr(trio._threads, "start_thread_soon", refuse)
    with pytest.raises(RuntimeError, match="thread"):
        await WriteAttempt(limiter, within_s=1).run(lambda: None)
    assert limiter.borrowed_tokens == 0


@ON_SQLITE
def test_connection_waits_as_before_after_a_write_with_a_deadline(url: str, tmp_path: Path) -> None:
    with Database.open(url) as database:
        for is_locked in (False, True):
            with ExitStack() as held:
                if is_locked:
                    held.enter_context(held.enter_context(Database.open(url)).writing())
                    held.enter_context(pytest.raises(RegistryBusy))
                with database.writing(within_s=0.05):
                    pass
            with database.reading() as db:
                assert db.exec_driver_sql("PRAGMA busy_timeout").scalar() == BUSY_TIMEOUT_S * 1000
