"""Tests of simulator.timer_queue."""

import math

import trio
from trio.testing import MockClock

from brewos_relay.simulator.timer_queue import GRAIN_S, TimerQueue


class Counting:
    """Records the times of its calls."""

    def __init__(self, *pauses_s: float) -> None:
        self.due_s = math.inf
        self.at: list[float] = []
        self._pauses_s = list(pauses_s)

    def tick(self, now_s: float) -> float:
        self.at.append(now_s)
        return now_s + self._pauses_s.pop(0) if self._pauses_s else math.inf


async def test_each_object_is_called_when_due(autojump_clock: MockClock) -> None:
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


async def test_wake_can_only_make_a_call_earlier(autojump_clock: MockClock) -> None:
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


async def test_forgotten_object_is_not_called(autojump_clock: MockClock) -> None:
    timers = TimerQueue()
    sleeper = Counting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.wake(sleeper, trio.current_time() + 1)
        timers.forget(sleeper)
        await trio.sleep(10)
        assert sleeper.at == []
        nursery.cancel_scope.cancel()
