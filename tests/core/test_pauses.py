"""Pauses: the clock that leaves them out, and the watch that detects them."""

import time
from math import inf

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core import pauses
from brewos_relay.core.pauses import PauseWatch, RunningClock, left_out_s
from support.suspension import suspendable


class RealTime:
    """A replacement for the time of the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(pauses, "perf_counter", lambda: self.now_s)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealTime:
    return RealTime(monkeypatch)


@pytest.fixture
def clock(real: RealTime) -> RunningClock:
    clock = RunningClock()
    clock.start_clock()
    return clock


def test_time_in_which_the_loop_ran_counts(real: RealTime, clock: RunningClock) -> None:
    began = clock.current_time()
    real.now_s += 1.9  # a turn of the loop that takes long
    assert clock.current_time() - began == pytest.approx(1.9)
    assert clock.deadline_to_sleep_time(began + 61.9) == pytest.approx(60)
    real.now_s += 61.9  # it slept as long as it should, and woke late
    assert clock.current_time() - began == pytest.approx(63.8)
    assert clock.deadline_to_sleep_time(inf) == inf
    real.now_s += 1000
    assert clock.current_time() - began == pytest.approx(1063.8)
    assert clock.left_out_s == 0


def test_time_in_which_it_did_not_run_does_not(real: RealTime, clock: RunningClock) -> None:
    began = clock.current_time()
    real.now_s += 50
    assert clock.current_time() == began
    assert clock.deadline_to_sleep_time(began + 1) == pytest.approx(1)
    real.now_s += 51
    assert clock.current_time() - began == pytest.approx(1), "the sleep is over, and nothing else"
    assert clock.left_out_s == pytest.approx(100)
    assert clock.deadline_to_sleep_time(began) < 0, "overdue"
    real.now_s += 3
    assert clock.current_time() - began == pytest.approx(1)


def test_no_deadline_passes_in_a_pause(real: RealTime) -> None:
    async def main() -> None:
        with trio.move_on_after(10) as scope:
            real.now_s += 50
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        assert not scope.cancelled_caught
        assert left_out_s() == 50

    trio.run(main, clock=RunningClock())


async def test_a_loop_that_is_late_was_paused(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    suspendable(monkeypatch)
    watch = PauseWatch()
    now = trio.current_time()
    watch.expect(now + 1)
    assert watch.check(now + 1) == (0, 0)
    assert watch.check(now + 2.9) == (0, 0)
    assert watch.check(now + 51) == (50, 0)


async def test_a_suspended_system_was_paused(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    suspend = suspendable(monkeypatch)
    watch = PauseWatch()
    now = trio.current_time()
    watch.expect(now + 1)
    suspend(1.0)
    assert watch.check(now + 1) == (0, 0)
    suspend(49.0)
    assert watch.check(now + 1) == (50, 50)
    watch.expect(now + 2)
    assert watch.check(now + 2) == (0, 0)


def test_time_left_out_by_the_clock_is_a_pause(real: RealTime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        watch = PauseWatch()
        watch.expect(trio.current_time() + 1)
        real.now_s += 50
        assert watch.check(trio.current_time()) == (50, 50)

    suspendable(monkeypatch)
    trio.run(main, clock=RunningClock())


async def test_other_clocks_leave_nothing_out() -> None:
    assert left_out_s() == 0


def test_systems_that_do_not_say_whether_they_were_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses._suspended_s() > -1
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert pauses._suspended_s() == 0
