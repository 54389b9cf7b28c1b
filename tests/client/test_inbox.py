"""Tests of client.inbox: what waits, what is dropped, and how it ends."""

import pytest
import trio
import trio.testing

from brewos_relay.client.inbox import Inbox


async def test_gives_what_was_put_in_order() -> None:
    inbox = Inbox[int](3, drops="newest")
    assert [inbox.put(number) for number in (1, 2)] == [True, True]
    assert len(inbox) == 2
    assert [await inbox.get(), await inbox.get()] == [1, 2]


async def test_whoever_waits_is_woken_once_for_each_item() -> None:
    inbox = Inbox[int](3, drops="newest")
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


async def test_a_full_one_takes_nothing_or_gives_up_the_oldest() -> None:
    keeps_oldest = Inbox[int](2, drops="newest")
    assert [keeps_oldest.put(number) for number in (1, 2, 3)] == [True, True, False]
    assert (await keeps_oldest.get(), keeps_oldest.dropped) == (1, 1)
    keeps_newest = Inbox[int](2, drops="oldest")
    assert [keeps_newest.put(number) for number in (1, 2, 3)] == [True, True, True]
    assert (await keeps_newest.get(), keeps_newest.dropped) == (2, 1)


async def test_an_end_comes_after_what_is_there_and_may_be_taken_back() -> None:
    inbox = Inbox[int](2, drops="newest")
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


async def test_an_end_wakes_all_who_wait() -> None:
    inbox = Inbox[int](2, drops="newest")
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


def test_nothing_fits_into_none() -> None:
    with pytest.raises(ValueError, match="at_most is 0"):
        Inbox[int](0, drops="newest")
