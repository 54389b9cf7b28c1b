"""BrokerClock: bounds of the broker's time."""

import time

import pytest

from brewos_relay.cluster.broker_clock import BrokerClock, elapsed_s


class Clocks:
    """An instance's clock, and the broker's."""

    def __init__(self) -> None:
        self.here_s = 50.0
        self.ahead_s = 1000.0
        self.measured = BrokerClock(lambda: self.here_s)

    @property
    def true_us(self) -> int:
        return round((self.here_s + self.ahead_s) * 1e6)

    def measure(self, *, there_s: float = 0.0, back_s: float = 0.0) -> None:
        """Ask the broker, with the times that the question and the answer take."""
        began_at = self.measured.begin()
        self.here_s += there_s
        now_us = self.true_us
        self.here_s += back_s
        self.measured.end(began_at, now_us)

    def bounds_s(self) -> tuple[float, float]:
        """Return how far the bounds are from the truth."""
        earliest_us, latest_us = self.measured.earliest_us(), self.measured.latest_us()
        assert earliest_us is not None
        assert latest_us is not None
        return (earliest_us - self.true_us) / 1e6, (latest_us - self.true_us) / 1e6


def test_nothing_is_known_without_a_measurement() -> None:
    clock = BrokerClock()
    assert (clock.now_us(), clock.earliest_us(), clock.latest_us()) == (None, None, None)


def test_time_is_exact_to_within_the_duration_of_a_measurement() -> None:
    clocks = Clocks()
    clocks.measure(there_s=3.0, back_s=1.0)
    assert clocks.bounds_s() == pytest.approx((-1.0, 3.0))
    assert clocks.measured.now_us() == pytest.approx(clocks.true_us + 1e6)
    clocks.here_s += 100
    assert clocks.bounds_s() == pytest.approx((-1.0, 3.0))


def test_further_measurements_make_the_bounds_narrower() -> None:
    clocks = Clocks()
    clocks.measure(there_s=3.0, back_s=1.0)
    clocks.measure(there_s=0.1, back_s=0.2)
    assert clocks.bounds_s() == pytest.approx((-0.2, 0.1), abs=0.01)
    clocks.measure(there_s=3.0, back_s=1.0)
    assert clocks.bounds_s() == pytest.approx((-0.2, 0.1), abs=0.01)


def test_clocks_that_drift_apart_slowly_have_one_time() -> None:
    clocks = Clocks()
    for _ in range(1000):
        clocks.measure(there_s=0.001, back_s=0.001)
        clocks.here_s += 4
        clocks.ahead_s += 4 * 1e-4
    least_s, most_s = clocks.bounds_s()
    assert -0.01 < least_s < most_s < 0.01


@pytest.mark.parametrize("by_s", [-10.0, 10.0])
def test_bounds_include_the_former_time_after_the_clock_was_changed(by_s: float) -> None:
    clocks = Clocks()
    clocks.measure()
    clocks.here_s += 4
    clocks.ahead_s += by_s
    clocks.measure()
    assert clocks.measured.now_us() == clocks.true_us
    assert clocks.bounds_s() == pytest.approx((min(-by_s, 0.0), max(-by_s, 0.0)), abs=0.01)
    clocks.here_s += 11
    clocks.measure()
    assert clocks.bounds_s() == pytest.approx((0.0, 0.0), abs=0.01)


def test_clock_of_a_process_counts_while_the_system_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert elapsed_s() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)
        monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert elapsed_s() == pytest.approx(time.monotonic(), abs=5)
