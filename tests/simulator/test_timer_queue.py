"""Tests of client.clock."""

import math

import trio
from trio.testing import MockClock

from brewos_relay.simulator.timer_queue import GRAIN_S, TimerQueue


class Counting:
    """Ticks at intervals, and says when."""

    def __init__(self, *pauses_s: float) -> None:
        self.due_s = math.inf
        self.at: list[float] = []
        self._pauses_s = list(pauses_s)

    def tick(self, now_s: float) -> float:
        self.at.append(now_s)
        return now_s + self._pauses_s.pop(0) if self._pauses_s else math.inf


async def test_looks_at_each_when_it_is_due(autojump_clock: MockClock) -> None:
    timers = TimerQueue()
    often, once = Counting(1, 1, 1), Counting()
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.wake(often, began_s + 1)
        timers.wake(once, began_s + 2.5)
        await trio.sleep(10)
        assert [math.floor(at - began_s) for at in often.at] == [1, 2, 3, 4]
        assert len(once.at) == 1
        assert 2.5 <= once.at[0] - began_s <= 2.5 + 2 * GRAIN_S
        nursery.cancel_scope.cancel()


async def test_can_be_woken_earlier_but_not_later(autojump_clock: MockClock) -> None:
    timers = TimerQueue()
    sleeper = Counting()
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.wake(sleeper, began_s + 100)
        await trio.sleep(1)
        timers.wake(sleeper, began_s + 200)
        timers.wake(sleeper, began_s + 2)
        await trio.sleep(300)
        assert len(sleeper.at) == 1
        assert sleeper.at[0] - began_s < 3
        nursery.cancel_scope.cancel()


async def test_forgets(autojump_clock: MockClock) -> None:
    timers = TimerQueue()
    sleeper = Counting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.wake(sleeper, trio.current_time() + 1)
        timers.forget(sleeper)
        await trio.sleep(10)
        assert sleeper.at == []
        nursery.cancel_scope.cancel()
