"""Tests of client.linked_peer."""

import time
from typing import Any

import pytest
import trio
import trio.testing

from brewos_relay.client.linked_peer import ReceiveQueue, RelayClock

# ReceiveQueue


async def test_queue_keeps_the_order() -> None:
    inbox = ReceiveQueue[int](3, drops="newest")
    assert [inbox.put(number) for number in (1, 2)] == [True, True]
    assert len(inbox) == 2
    assert [await inbox.get(), await inbox.get()] == [1, 2]


async def test_each_item_wakes_one_waiting_task() -> None:
    inbox = ReceiveQueue[int](3, drops="newest")
    got: list[int] = []

    async def take() -> None:
        got.append(await inbox.get())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            inbox.put(1)
            await trio.testing.wait_all_tasks_blocked()
            assert got == [1]
            inbox.put(2)
    assert got == [1, 2]


async def test_full_queue_drops_the_newest_or_the_oldest() -> None:
    keeps_oldest = ReceiveQueue[int](2, drops="newest")
    assert [keeps_oldest.put(number) for number in (1, 2, 3)] == [True, True, False]
    assert (await keeps_oldest.get(), keeps_oldest.dropped) == (1, 1)
    keeps_newest = ReceiveQueue[int](2, drops="oldest")
    assert [keeps_newest.put(number) for number in (1, 2, 3)] == [True, True, True]
    assert (await keeps_newest.get(), keeps_newest.dropped) == (2, 1)


async def test_end_is_raised_after_the_last_item_and_can_be_revoked() -> None:
    inbox = ReceiveQueue[int](2, drops="newest")
    inbox.put(1)
    inbox.end(ValueError("over"))
    assert await inbox.get() == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="over"):
            await inbox.get()
    inbox.end(None)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            with trio.move_on_after(0.01) as waiting:
                await inbox.get()
    assert waiting.cancelled_caught


async def test_end_wakes_all_waiting_tasks() -> None:
    inbox = ReceiveQueue[int](2, drops="newest")
    ended: list[str] = []

    async def take() -> None:
        with pytest.raises(ValueError, match="over"):
            await inbox.get()
        ended.append("one")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            inbox.end(ValueError("over"))
    assert len(ended) == 2


def test_queue_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at_most must be at least 1, got 0"):
        ReceiveQueue[int](0, drops="newest")


# RelayClock


def test_clock_is_local_until_the_greeting() -> None:
    clock = RelayClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 1000
    clock.set("noon")
    assert abs(clock.now_ms() - time.time() * 1000) < 1000


def test_clock_is_the_relays_after_the_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = RelayClock()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    clock.set(1_700_000_000_000)
    monkeypatch.setattr(time, "monotonic", lambda: 102.5)
    assert clock.now_ms() == 1_700_000_002_500
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # our own was set
    assert clock.now_ms() == 1_700_000_002_500


@pytest.mark.parametrize(
    ("not_after", "passed"),
    [
        (999_999, True),
        (1_000_000, False),
        (1e300, False),
        (None, False),
        ("0", False),
        (True, False),
        (0, True),
    ],
)
def test_has_passed_compares_with_the_relays_time(
    monkeypatch: pytest.MonkeyPatch, not_after: Any, passed: bool
) -> None:
    clock = RelayClock()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    clock.set(1_000_000)
    assert clock.has_passed(not_after) is passed
