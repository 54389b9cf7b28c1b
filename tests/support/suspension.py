"""A system that can be suspended: its two clocks, as the relay reads them."""

import time
from collections.abc import Callable

import pytest


def suspendable(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clocks of the system; return a function that suspends it."""
    suspended_s = 7.0

    def read_clock(clock: int) -> float:
        return suspended_s if clock == time.CLOCK_BOOTTIME else 0.0

    def suspend(for_s: float) -> None:
        nonlocal suspended_s
        suspended_s += for_s

    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(time, "clock_gettime", read_clock)
    return suspend
